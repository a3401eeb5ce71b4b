-- Whether what stands is over, by its own time or the idle timeout that is configured now. Who
-- held it while it did not answer does not bring it back. limit is that idle timeout, µs; 0: none.
-- noted is the power of two below which uses were noted.
local over = ends <= now or limit > 0 and touched + limit + 2 ^ noted <= now
