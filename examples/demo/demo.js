"use strict"
// The page works by forms. This sends them without leaving the page, and has what the server says
// take the place of what stands here; it draws runs, and holds the stream of the session.
const $ = id => document.getElementById(id)

// Forms.
document.addEventListener("submit", async event => {
  const form = event.target
  if (form.method !== "post") return
  event.preventDefault()
  const button = event.submitter
  button?.setAttribute("aria-busy", "true")
  $("notice").textContent = ""
  try {
    const r = await fetch(form.action, { method: "POST", headers: { Accept: "text/plain" }, body: new URLSearchParams(new FormData(form)), redirect: "manual" })
    // A redirect means done. What became of a guess is in the log.
    if (r.type !== "opaqueredirect" && !r.ok && (form.id !== "try" || r.status >= 500)) $("notice").textContent = r.status + ": " + (await r.text()).trim()
  } catch {
    $("notice").textContent = "The server does not answer."
  }
  button?.removeAttribute("aria-busy")
  if (form.id === "try") form.password.value = ""
  await refresh(true)
})

// refresh asks for the page: as nobody for what stands for everybody, which also works while Redis is
// away, and as oneself for the session.
async function refresh(mine) {
  try {
    take(await (await fetch("/", { credentials: "omit" })).text(), "data-live")
    if (!mine) return
    const r = await fetch("/")
    if (r.ok) take(await r.text(), "data-mine")
    else $("notice").textContent = r.status + ": while Redis is away this server cannot tell who you are. Your cookie stays."
    listen()
  } catch {
    $("notice").textContent = "The server does not answer."
  }
}

function take(html, mark) {
  const page = new DOMParser().parseFromString(html, "text/html")
  const focus = document.activeElement?.id
  for (const now of page.querySelectorAll("[" + mark + "]")) {
    const old = $(now.id)
    if (!old || old.outerHTML === now.outerHTML) continue
    for (const a of now.attributes) old.setAttribute(a.name, a.value)
    const drawn = old.querySelector(".chart"), next = now.querySelector(".chart")
    if (!drawn || next?.dataset.run !== drawn.dataset.run) old.replaceChildren(...now.childNodes)
  }
  const there = $(focus)
  if (focus && document.activeElement !== there) (there?.disabled ? there.closest(".row").querySelector("button:enabled") : there ?? $("mine")).focus()
  draw()
}

// While a run is under way, here or in another window, the page follows it.
setInterval(() => { if (document.querySelector("[data-running=true]")) refresh(false) }, 400)
addEventListener("focus", () => refresh(true))

// The stream of the session. It closes when the session is ended, wherever that is done.
let stream, streamOf = ""
function listen() {
  const handle = $("mine").dataset.handle
  if (handle === streamOf) return
  streamOf = handle
  stream?.close()
  if (!handle) return
  say("", "Connecting.")
  stream = new EventSource("/stream")
  stream.addEventListener("live", e => say("live", e.data))
  stream.addEventListener("ended", e => {
    stream.close()
    say("ended", e.data)
    streamOf = ""
    refresh(true)
  })
  stream.onerror = () => { if (streamOf) say("", "The stream is interrupted; the browser tries again.") }
}
function say(state, text) {
  $("live").className = state
  $("live").textContent = text
}

// Drawings. A request is a dot: the shape says by which server, the filling what became of it.
function draw() {
  for (const chart of document.querySelectorAll(".chart")) {
    if (!chart.dataset.run || chart.firstChild && chart.dataset.width == chart.clientWidth) continue
    chart.dataset.width = chart.clientWidth
    chart.replaceChildren(drawing(JSON.parse(chart.dataset.run), chart.clientWidth))
  }
}
function shape(name, attributes, ...children) {
  const e = document.createElementNS("http://www.w3.org/2000/svg", name)
  for (const [k, v] of Object.entries(attributes)) e.setAttribute(k, v)
  e.append(...children)
  return e
}
function drawing(run, width) {
  const tall = run.lanes.length > 2, step = width > 600 ? 12 : tall ? 9 : 7, size = step * .36
  const rows = tall ? 8 : 2, head = 22, foot = tall ? 20 : 8, height = head + rows * step + foot
  const x = ms => 14 + ms / run.length * (width - 28)
  const svg = shape("svg", { viewBox: `0 0 ${width} ${run.lanes.length * height + 18}`, height: run.lanes.length * height + 18, "aria-hidden": "true" })
  run.lanes.forEach((lane, i) => {
    const top = i * height, ground = top + head + rows * step
    const g = svg.appendChild(shape("g", { class: tall && lane.most > run.limit ? "over" : "" }))
    const fixed = run.edge && lane.name.startsWith("Fixed")
    if (fixed) g.append(shape("rect", { class: "band", x: x(0), y: top + head - 2, width: Math.max(0, x(run.edge) - x(0) - 1), height: rows * step + 4 }),
      shape("rect", { class: "band", x: x(run.edge) + 1, y: top + head - 2, width: Math.max(0, x(run.length) - x(run.edge) - 1), height: rows * step + 4 }))
    if (run.edge) g.append(shape("line", { class: "edge", x1: x(run.edge), x2: x(run.edge), y1: top + head - 6, y2: ground + 2 }))
    g.append(shape("text", { class: "name", x: 6, y: top + 14 }, lane.name), shape("line", { class: "line", x1: 0, x2: width, y1: ground + 3, y2: ground + 3 }))
    if (fixed) g.append(shape("text", { x: x(run.edge), y: top + 12, "text-anchor": "middle" }, "edge"))
    for (const dot of blocks(lane.dots ?? [], rows)) {
      const cx = x(dot.at) + dot.column * step, cy = ground - 4 - dot.row * step
      g.append(dot.what === "banned" ? shape("path", { class: "banned", d: `M${cx - 3} ${cy - 3}l6 6m0 -6l-6 6` })
        : dot.server === "A" ? shape("circle", { class: dot.what, cx, cy, r: size })
        : shape("rect", { class: dot.what, x: cx - size, y: cy - size, width: 2 * size, height: 2 * size }))
    }
    if (tall && lane.most) {
      const from = Math.max(2, x(lane.end - run.window)), to = x(lane.end) + step, y = ground + 10
      g.append(shape("path", { class: "most", d: `M${from} ${y - 4}v8m0 -4H${to}m0 -4v8` }), shape("text", { class: "most-text", x: from + 12, y: ground - 14 }, lane.most + " in 10 s"))
    }
  })
  const bottom = run.lanes.length * height
  for (let s = 0; s * 1000 <= run.length; s += 2) svg.append(shape("text", { x: x(s * 1000), y: bottom + 13, "text-anchor": s ? "middle" : "start" }, s + " s"))
  if (run.now < run.length) svg.append(shape("line", { class: "now", x1: x(run.now), x2: x(run.now), y1: 0, y2: bottom }))
  return svg
}
// blocks stacks dots that came together: those of A to the left of their time, those of B to the right.
function blocks(dots, rows) {
  const order = { passed: 0, denied: 1, banned: 2 }, placed = []
  let group = []
  const close = () => {
    for (const [server, side] of [["A", -1], ["B", 1]]) {
      const some = group.filter(d => d.server === server).sort((a, b) => order[a.what] - order[b.what])
      const alone = some.length === group.length
      some.forEach((d, i) => placed.push({ ...d, at: group[0].at, row: i % rows, column: side * (Math.floor(i / rows) + (alone ? 0 : .5)) }))
    }
    group = []
  }
  for (const d of dots.toSorted((a, b) => a.at - b.at)) {
    if (group.length && d.at - group[0].at > 120) close()
    group.push(d)
  }
  close()
  return placed
}
addEventListener("resize", draw)
draw()
listen()
