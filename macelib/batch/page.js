"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const { parameters, metrics, rows } = data;
const hidden = Object.fromEntries(["status", ...parameters].map((name) => [name, new Set()]));
let sort = { name: null, down: false };

function make(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}
function say(value) {
  if (value === null || value === undefined) return "–";
  if (typeof value !== "number" || Number.isInteger(value)) return String(value);
  return Math.abs(value) >= 1e5 || Math.abs(value) < 1e-3 ? value.toExponential(2) : String(+value.toPrecision(4));
}
const parameter = (row, name) => row.values[parameters.indexOf(name)];
function get(row, name) {
  if (name === "status" || name === "run" || name === "seconds") return row[name];
  return parameters.includes(name) ? parameter(row, name) : row.metrics[name];
}
function compare(a, b) {
  const none = (v) => v === null || v === undefined;
  if (none(a) || none(b)) return none(a) - none(b);
  if (typeof a === "number" && typeof b === "number") return a - b;
  return String(a).localeCompare(String(b), undefined, { numeric: true });
}
const distinct = (name, from = rows) => {
  const seen = new Map(from.map((row) => [JSON.stringify(get(row, name) ?? null), get(row, name) ?? null]));
  return [...seen.values()].sort(compare);
};
const shown = () => rows.filter((row) => Object.entries(hidden).every(([n, off]) => !off.has(JSON.stringify(get(row, n) ?? null))));

// Metrics: the short names are the headline; bounds of intervals stay in the CSV.
const headline = metrics.filter((name) => !/\.(low|high)$/.test(name));
const leading = headline.filter((name) => !name.includes("."));
let visible = new Set((leading.length ? leading : headline).slice(0, 6));

function filters() {
  const place = document.getElementById("controls");
  for (const name of ["status", ...parameters]) {
    const values = distinct(name);
    if (values.length < 2) continue;
    const set = make("fieldset", {}, make("legend", { textContent: name }));
    for (const value of values) {
      const key = JSON.stringify(value);
      const button = make("button", { type: "button", textContent: say(value), title: say(value) });
      button.setAttribute("aria-pressed", "true");
      button.onclick = () => {
        hidden[name].has(key) ? hidden[name].delete(key) : hidden[name].add(key);
        button.setAttribute("aria-pressed", String(!hidden[name].has(key)));
        draw();
      };
      set.append(button);
    }
    place.append(set);
  }
  if (!place.children.length) return place.remove();
  const all = make("button", { type: "button", textContent: "Show all" });
  all.onclick = () => {
    Object.values(hidden).forEach((off) => off.clear());
    place.querySelectorAll("[aria-pressed]").forEach((b) => b.setAttribute("aria-pressed", "true"));
    draw();
  };
  place.append(make("fieldset", {}, make("legend", { textContent: "filters" }), all));
}

// The interval of a metric, where both of its bounds are recorded.
function interval(row, metric) {
  const bounds = [row.metrics[`${metric}.low`], row.metrics[`${metric}.high`]];
  return bounds.every((v) => typeof v === "number") ? bounds : null;
}
function select(place, label, options, chosen) {
  const box = make("select", { onchange: draw });
  for (const option of options) box.append(make("option", { value: option, textContent: option || "nothing", selected: option === chosen }));
  place.append(make("label", {}, label, box));
  return box;
}
let chooseMetric, chooseX, chooseColour;
function choices() {
  const place = document.getElementById("choices");
  if (!headline.length || !parameters.length) return document.getElementById("plot").remove();
  const best = headline.find((name) => visible.has(name) && /(^|\.)H_o$/.test(name));
  chooseMetric = select(place, "metric", headline, best ?? [...visible][0]);
  const free = parameters.filter((n) => n !== "seed");
  const along = free.find((n) => rows.every((row) => typeof parameter(row, n) === "number")) ?? free[0] ?? parameters[0];
  chooseX = select(place, "by", parameters, along);
  chooseColour = select(place, "colour", ["", ...parameters], free.find((n) => n !== along) ?? "");
  const extra = make("select", {
    onchange: () => { if (extra.value) { visible.has(extra.value) ? visible.delete(extra.value) : visible.add(extra.value); extra.value = ""; fillExtra(); draw(); } },
  });
  function fillExtra() {
    extra.replaceChildren(make("option", { value: "", textContent: "metrics shown…" }));
    for (const name of headline) extra.append(make("option", { value: name, textContent: (visible.has(name) ? "✓ " : "   ") + name }));
  }
  if (headline.length > 1) { fillExtra(); extra.setAttribute("aria-label", "metrics shown in the table"); document.getElementById("columns").append(extra); }
}

const SVG = "http://www.w3.org/2000/svg";
function shape(tag, attributes, text) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  return node;
}
function ticks(low, high) {
  const raw = (high - low) / 5, power = 10 ** Math.floor(Math.log10(raw)), step = [1, 2, 5, 10].map((k) => k * power).find((s) => s >= raw);
  const out = [];
  for (let v = Math.ceil(low / step - 1e-9) * step; v <= high + step * 1e-6; v += step) out.push(+v.toPrecision(10));
  return out;
}
function chart(list) {
  const place = document.getElementById("chart");
  if (!place) return;
  const [metric, x, colour] = [chooseMetric.value, chooseX.value, chooseColour.value];
  const points = list.filter((row) => typeof row.metrics[metric] === "number");
  if (!points.length) return place.replaceChildren(make("p", { className: "empty", textContent: "No run that is shown has this metric." }));
  const W = Math.min(860, Math.max(300, place.clientWidth)), H = 330, left = 64, right = 16, top = 26, bottom = 52;
  const xs = distinct(x, points), groups = colour ? distinct(colour, points) : [null];
  const numbers = points.flatMap((row) => [row.metrics[metric], ...(interval(row, metric) ?? [])]);
  let low = Math.min(...numbers), high = Math.max(...numbers);
  const pad = (high - low || Math.abs(high) || 1) * 0.08;
  [low, high] = [low - pad, high + pad];
  const px = (value) => left + ((xs.findIndex((v) => JSON.stringify(v) === JSON.stringify(value ?? null)) + 0.5) / xs.length) * (W - left - right);
  const py = (value) => H - bottom - ((value - low) / (high - low)) * (H - top - bottom);
  const svg = shape("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": `${metric} by ${x}` });
  for (const t of ticks(low, high)) {
    svg.append(shape("line", { x1: left, x2: W - right, y1: py(t), y2: py(t), class: "grid" }), shape("text", { x: left - 8, y: py(t) + 4, "text-anchor": "end" }, say(t)));
  }
  const cut = Math.max(6, Math.floor((W - left - right) / xs.length / 7));
  xs.forEach((value) => {
    const text = say(value), label = shape("text", { x: px(value), y: H - bottom + 20, "text-anchor": "middle" }, text.length > cut ? text.slice(0, cut - 1) + "…" : text);
    label.append(shape("title", {}, text));
    svg.append(label);
  });
  svg.append(shape("text", { x: left, y: 14, class: "name" }, metric), shape("text", { x: (left + W - right) / 2, y: H - 10, "text-anchor": "middle", class: "name" }, x));
  groups.forEach((group, i) => {
    const mine = points.filter((row) => !colour || JSON.stringify(get(row, colour) ?? null) === JSON.stringify(group));
    const paint = `var(--s${i % 8})`, shift = groups.length > 1 ? (i - (groups.length - 1) / 2) * Math.min(9, 60 / groups.length) : 0;
    const means = xs.map((value) => {
      const here = mine.filter((row) => JSON.stringify(parameter(row, x) ?? null) === JSON.stringify(value)).map((row) => row.metrics[metric]);
      return here.length ? [px(value) + shift, py(here.reduce((a, b) => a + b) / here.length)] : null;
    }).filter(Boolean);
    svg.append(shape("polyline", { points: means.map((p) => p.join()).join(" "), fill: "none", stroke: paint, "stroke-width": 2.2, "stroke-dasharray": i >= 8 ? "6 4" : "none" }));
    const dots = shape("g", { class: "points", fill: paint, stroke: paint });
    mine.forEach((row) => {
      const bounds = interval(row, metric), failed = row.status !== "complete";
      const repeats = mine.filter((other) => parameter(other, x) === parameter(row, x));
      const apart = (repeats.indexOf(row) - (repeats.length - 1) / 2) * Math.min(8, 40 / repeats.length);
      const cx = px(parameter(row, x)) + shift + apart;
      const dot = shape("circle", { cx, cy: py(row.metrics[metric]), r: 4.5, class: failed ? "failed" : "", "fill-opacity": 0.8 });
      const range = bounds ? ` (${say(bounds[0])} to ${say(bounds[1])})` : "";
      dot.append(shape("title", {}, parameters.map((n) => `${n} ${say(parameter(row, n))}`).join(", ") + `: ${say(row.metrics[metric])}${range}${failed ? `, ${row.status}` : ""}`));
      if (bounds) dots.append(shape("line", { x1: cx, x2: cx, y1: py(bounds[0]), y2: py(bounds[1]), class: "interval" }));
      dot.onmouseenter = dot.onmouseleave = (event) => document.getElementById(row.run)?.classList.toggle("lit", event.type === "mouseenter");
      dots.append(dot);
    });
    svg.append(dots);
  });
  const key = make("ul", { className: "key" });
  if (colour) {
    key.append(make("li", { className: "head", textContent: colour }));
    groups.forEach((group, i) => {
      const swatch = make("i");
      swatch.style.background = `var(--s${i % 8})`;
      key.append(make("li", {}, swatch, say(group)));
    });
  }
  const notes = ["dot: a run; line: mean"];
  if (points.some((row) => row.status !== "complete")) notes.push("ring: a run that failed after it recorded this");
  if (points.some((row) => interval(row, metric))) notes.push("bar: interval as recorded");
  notes.forEach((textContent) => key.append(make("li", { className: "head", textContent })));
  place.replaceChildren(svg, key);
}

function table(list) {
  const names = ["run", "status", ...parameters, ...headline.filter((name) => visible.has(name)), "seconds"];
  const numeric = (name) => rows.some((row) => typeof get(row, name) === "number") && rows.every((row) => ["number", "undefined"].includes(typeof (get(row, name) ?? undefined)));
  const head = make("tr");
  for (const name of names) {
    const button = make("button", { type: "button" });
    name.split(name.length > 14 ? /(?<=[._])/ : /(?<=\.)/).forEach((part, i) => button.append(...(i ? [make("wbr"), part] : [part])));
    button.onclick = () => { sort = { name, down: sort.name === name && !sort.down }; draw(); };
    const cell = make("th", { scope: "col", className: (numeric(name) ? "number " : "") + (metrics.includes(name) ? "metric" : "") }, button);
    if (sort.name === name) cell.setAttribute("aria-sort", sort.down ? "descending" : "ascending");
    head.append(cell);
  }
  const pictures = rows.some((row) => row.pictures.length);
  if (pictures) head.append(make("th", { scope: "col", textContent: "figures" }));
  document.querySelector("thead").replaceChildren(head);
  if (sort.name) {
    const none = (v) => v === null || v === undefined;
    list = [...list].sort((a, b) => {
      const [u, v] = [get(a, sort.name), get(b, sort.name)];
      return none(u) || none(v) ? compare(u, v) : (sort.down ? -1 : 1) * compare(u, v);
    });
  }
  const body = list.map((row) => {
    const line = make("tr", { id: row.run, className: row.status === "failed" ? "stopped" : "" });
    for (const name of names) {
      const value = get(row, name), cell = make("td", { className: numeric(name) ? "number" : String(value).length > 28 ? "long" : "" });
      if (name === "run") {
        const main = row.files[0];
        cell.append(main ? make("a", { href: `${row.run}/${main}` }, make("code", {}, row.run.slice(0, 8))) : make("code", { textContent: row.run.slice(0, 8) }));
        for (const [file, textContent] of [["notebook.ipynb", "notebook"], ["log.txt", "log"]])
          if (file !== main && row.files.includes(file)) cell.append(" ", make("small", {}, make("a", { href: `${row.run}/${file}`, textContent })));
      } else if (name === "status") {
        cell.append(make("span", { className: value, textContent: value }));
        if (row.error) cell.append(make("span", { className: "error", textContent: row.error.split("\n")[0].slice(0, 240) }));
      } else cell.textContent = name === "seconds" && typeof value === "number" ? value.toFixed(value < 10 ? 1 : 0) : say(value);
      line.append(cell);
    }
    if (pictures) {
      const strip = make("div", { className: "pictures" });
      for (const [name, source, width, height] of row.pictures) strip.append(make("a", { href: `${row.run}/${name}`, title: name }, make("img", { src: source, width, height, alt: name, loading: "lazy" })));
      if (row.more) strip.append(make("small", { textContent: `+${row.more}` }));
      line.append(make("td", {}, strip));
    }
    return line;
  });
  document.querySelector("tbody").replaceChildren(...body);
  document.getElementById("count").textContent = list.length === rows.length ? `all ${rows.length}` : `${list.length} of ${rows.length}`;
}
function draw() {
  const list = shown();
  chart(list);
  table(list);
}
filters();
choices();
draw();
addEventListener("resize", () => chart(shown()));  // its letters keep their size
