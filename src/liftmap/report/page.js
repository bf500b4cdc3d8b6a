"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const PAGE = 100;
let rate = data.rate, limit = data.limit, first = 0;

// which p-values are flagged is the calibration's to say: `limits` has its answer at each step
const flaggedAt = (p) => p <= limit;

function element(name, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function canvas(height) {
  const svg = element("svg", { viewBox: `0 0 640 ${height}`, "aria-hidden": "true" });
  return svg;
}

function counts(values, low, width, bins) {
  const found = new Array(bins).fill(0);
  for (const value of values) found[Math.min(bins - 1, Math.max(0, Math.floor((value - low) / width)))] += 1;
  return found.map((n) => n / Math.max(1, values.length));
}

// the score at which the p-value crosses the rate: the k-th highest calibration score
function threshold() {
  const sorted = data.calibration, k = Math.floor(limit * (sorted.length + 1));
  return k < 1 ? Infinity : sorted[sorted.length - k];
}

function drawHistogram() {
  const place = at("histogram"), scores = data.rows.map((row) => row[1]), bins = 60;
  const all = scores.concat(data.calibration);
  let low = Infinity, high = -Infinity;
  for (const value of all) { low = Math.min(low, value); high = Math.max(high, value); }
  const width = (high - low) / bins || 1, svg = canvas(220);
  const known = counts(data.calibration, low, width, bins), here = counts(scores, low, width, bins);
  const top = Math.max(...known, ...here, 1e-9), x = (value) => 20 + 600 * (value - low) / (width * bins);
  here.forEach((share, i) => svg.append(element("rect", { x: 20 + 10 * i, width: 9, y: 180 - 160 * share / top,
    height: 160 * share / top, fill: "var(--odd)", opacity: 0.55 })));
  const line = known.map((share, i) => `${20 + 10 * i},${180 - 160 * share / top} ${30 + 10 * i},${180 - 160 * share / top}`);
  svg.append(element("polyline", { points: line.join(" "), fill: "none", stroke: "var(--calm)", "stroke-width": 2 }));
  const cut = threshold();
  if (Number.isFinite(cut)) {
    svg.append(element("line", { x1: x(cut), x2: x(cut), y1: 10, y2: 180, stroke: "var(--ink)", "stroke-dasharray": "4 3" }));
    svg.append(element("text", { x: Math.min(x(cut) + 4, 560), y: 18 }, "flagged →"));
  }
  svg.append(element("text", { x: 20, y: 200 }, low.toFixed(2)));
  svg.append(element("text", { x: 620, y: 200, "text-anchor": "end" }, high.toFixed(2)));
  svg.append(element("text", { x: 320, y: 214, "text-anchor": "middle" },
    "score: bars these images, line the calibration's in-domain images"));
  place.replaceChildren(svg);
}

function drawDrift() {
  const place = at("drift");
  if (!place) return;
  const svg = canvas(200), parts = data.windows, wide = 600 / parts.length;
  const top = Math.max(...parts.map(([, n, k, , high]) => Math.max(k, high) / n), 1e-9);
  const y = (share) => 170 - 150 * share / top;
  parts.forEach(([begin, n, k, low, high], i) => {
    const x = 20 + wide * i;
    svg.append(element("rect", { x, width: wide, y: y(high / n), height: y(low / n) - y(high / n), fill: "var(--band)" }));
    const dot = element("circle", { cx: x + wide / 2, cy: y(k / n), r: 4,
      fill: k > high || k < low ? "var(--odd)" : "var(--calm)" });
    dot.append(element("title", {}, `images ${begin} to ${begin + n - 1}: ${k} of ${n} flagged`));
    svg.append(dot);
  });
  svg.append(element("text", { x: 20, y: 190 }, "first image"));
  svg.append(element("text", { x: 620, y: 190, "text-anchor": "end" }, "last image"));
  svg.append(element("text", { x: 20, y: 12 }, `${(100 * top).toFixed(0)}%`));
  place.replaceChildren(svg);
}

function drawCurves() {
  const place = at("roc");
  if (!place) return;
  const svg = element("svg", { viewBox: "0 0 260 250", "aria-hidden": "true" });
  const x = (value) => 30 + 220 * value, y = (value) => 215 - 205 * value;
  svg.append(element("rect", { x: 30, y: 10, width: 220, height: 205, fill: "none", stroke: "var(--line)" }));
  svg.append(element("line", { x1: x(0), y1: y(0), x2: x(1), y2: y(1), stroke: "var(--line)" }));
  data.curves.forEach((curve, i) => svg.append(element("polyline", {
    points: curve.points.map(([fpr, tpr]) => `${x(fpr)},${y(tpr)}`).join(" "), fill: "none",
    stroke: `var(--curve-${i % 4})`, "stroke-width": 2, "stroke-dasharray": ["none", "7 4", "2 3", "10 3 2 3"][i % 4] })));
  svg.append(element("text", { x: 140, y: 243, "text-anchor": "middle" }, "in-domain images flagged"));
  svg.append(element("text", { x: 12, y: 112, "text-anchor": "middle", transform: "rotate(-90 12 112)" }, "OOD images caught"));
  for (const value of [0, 1]) {
    svg.append(element("text", { x: x(value), y: 228, "text-anchor": "middle" }, String(value)));
    svg.append(element("text", { x: 26, y: y(value) + 4, "text-anchor": "end" }, String(value)));
  }
  place.replaceChildren(svg);
}

const byOddness = data.rows.map((_, i) => i).sort((a, b) => data.rows[a][2] - data.rows[b][2] || data.rows[b][1] - data.rows[a][1]);

function matching() {
  const which = at("which").value, wanted = at("find").value.toLowerCase();
  if (which === "skipped") return data.skipped.filter(([id]) => id.toLowerCase().includes(wanted));
  const order = at("sort").value === "p" ? byOddness : data.rows.map((_, i) => i);
  return order.map((i) => data.rows[i]).filter(([id, , p]) =>
    (which === "all" || flaggedAt(p)) && id.toLowerCase().includes(wanted));
}

function line(cells, kind, odd) {
  const row = document.createElement("tr");
  if (odd) row.className = "odd";
  for (const text of cells) {
    const cell = document.createElement(kind);
    cell.textContent = text;
    if (kind === "th") cell.scope = "col";
    row.append(cell);
  }
  return row;
}

function drawTable() {
  const found = matching(), skipped = at("which").value === "skipped";
  first = Math.max(0, Math.min(first, Math.floor((found.length - 1) / PAGE) * PAGE));
  const shown = found.slice(first, first + PAGE);
  at("table-head").replaceChildren(line(skipped ? ["image", "why"] : ["image", "score", "p-value", "attempts", "decision"], "th"));
  at("table-body").replaceChildren(...shown.map((row) => skipped ? line(row, "td") :
    line([row[0], row[1].toFixed(3), row[2].toFixed(4), row[3], flaggedAt(row[2]) ? "out-of-distribution" : "in-domain"], "td",
      flaggedAt(row[2]))));
  at("found").textContent = `${found.length} image${found.length === 1 ? "" : "s"}`;
  at("page-shown").textContent = found.length ? `${first + 1} to ${first + shown.length}` : "";
  at("previous").disabled = first === 0;
  at("next").disabled = first + PAGE >= found.length;
}

function decide() {
  at("flagged").textContent = data.rows.filter((row) => flaggedAt(row[2])).length;
  at("rate-shown").textContent = `${(100 * rate).toFixed(1)}%`;
  drawHistogram();
  drawTable();
}

at("rate").addEventListener("input", (event) => {
  const step = Math.round(10 * event.target.value);
  rate = step / 1000; limit = data.limits[step - 1]; first = 0;
  decide();
});
for (const id of ["which", "find", "sort"]) at(id).addEventListener("input", () => { first = 0; drawTable(); });
at("filters").addEventListener("submit", (event) => event.preventDefault());
at("previous").addEventListener("click", () => { first -= PAGE; drawTable(); });
at("next").addEventListener("click", () => { first += PAGE; drawTable(); });
for (const button of document.querySelectorAll("[data-explain]")) {
  button.addEventListener("click", () => {
    const image = data.gallery[button.dataset.explain];
    at("e-title").textContent = image.id;
    at("e-words").textContent = `Score ${image.score.toFixed(3)}: ${image.words}.`;
    at("e-picture").src = image.explanation;
    at("e-picture").alt = `${image.id}: original, two hidden halves with their redraws, and a distance map`;
    at("explanation").showModal();
  });
}
drawDrift();
drawCurves();
decide();
