package codec

// CheckLegacy walks a session as GobCodec of github.com/alexedwards/scs/v2 writes
// it, and returns it in a form that GobCodec decodes to the same values, whatever
// types are registered, and in which no count exceeds what the bytes can hold.
// GobCodec must be given that form, not b. The error wraps [ErrMalformed].
//
// GobCodec believes a map's count: 132 bytes that claim 2²⁷ entries make it
// allocate 10 GB before it reads the first one.
func CheckLegacy(b []byte) (plain []byte, err error) {
	plain, ok := plainGob(string(b))
	if !ok {
		return nil, errGobMalformed
	}
	return plain, nil
}
