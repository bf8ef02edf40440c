"use strict";
const read = (id) => JSON.parse(document.getElementById(id).textContent);
const data = read("data");
const by = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
function make(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) key in node ? (node[key] = value) : node.setAttribute(key, value);
  node.append(...children);
  return node;
}
function draw(name, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}
function fill(select, names) {
  select.replaceChildren(...names.map((name, at) => make("option", { value: String(at), textContent: name })));
}
// names may break after an underscore
function soft(name) {
  const nodes = name.split(/(?<=_)/).flatMap((part) => [part, make("wbr")]);
  return make("span", {}, ...nodes.slice(0, -1));
}
const DASHES = ["", "7 4", "2 3", "9 3 2 3"];
function listed(names, most) {
  const rest = names.length - most;
  return rest > 1 ? `${names.slice(0, most).join(", ")} and ${rest} others` : names.join(", ").replace(/, ([^,]*)$/, " or $1");
}
const CROWD = 8, BANDS = 3, LISTED = 12; // presses drawn to begin with; bands drawn at most; presses listed in the overview
let view, shown, styles, sorting, contextOf, start;

// a colour is never the only difference: dash and marker change with it
function look(at) {
  return { colour: `var(--c${at % 8})`, dash: DASHES[at % DASHES.length], shape: (at + Math.floor(at / 8)) % 5 };
}
function marker(shape, x, y, colour) {
  const size = 4.5;
  const paths = [
    `M${x - size} ${y}a${size} ${size} 0 1 0 ${2 * size} 0a${size} ${size} 0 1 0 ${-2 * size} 0`,
    `M${x - size} ${y - size}h${2 * size}v${2 * size}h${-2 * size}z`,
    `M${x} ${y - 1.3 * size}L${x + 1.2 * size} ${y + size}H${x - 1.2 * size}z`,
    `M${x} ${y - 1.4 * size}L${x + 1.4 * size} ${y}L${x} ${y + 1.4 * size}L${x - 1.4 * size} ${y}z`,
    `M${x - size} ${y - size}L${x + size} ${y + size}M${x + size} ${y - size}L${x - size} ${y + size}`,
  ];
  return draw("path", { d: paths[shape], fill: shape === 4 ? "none" : colour, stroke: colour, "stroke-width": shape === 4 ? 2.2 : 0 });
}
// a bare number is a ratio; tokens and thresholds name themselves
const named = ({ budget }) => (budget === "" || budget === "–" ? "" : budget.includes(" ") ? ` at ${budget}` : ` at ratio ${budget}`);
const budgetHead = () => (view.lines.some((line) => line.budget.includes(" ")) ? "budget" : "ratio");
const pressesOf = () => [...new Set(view.lines.filter((line) => !line.baseline).map((line) => line.press))];

function removed(budget) {
  if (budget.ratio === null) return `At ${budget.label}`;
  return `With ${percent(budget)} of the cache removed${modeOf(budget)}`;
}
const percent = (budget) => `${Number((100 * budget.ratio).toFixed(1))} %`;
const modeOf = (budget) => (budget.label.includes(" ") ? budget.label.slice(budget.label.indexOf(" ")) : "");
const overviewOf = () => data.overview[data.views.indexOf(view)];
const ranking = () => overviewOf().budgets[Number(by("judged-budget").value)]?.columns[view.columns[Number(by("judged-column").value)]];
function ranked() { // place of a press in the overview
  const places = new Map((ranking()?.ranked || []).map((line, at) => [view.lines[line].press, at]));
  return (name) => places.get(name) ?? view.lines.length;
}
function plural(count, one, many) {
  return `${count.toLocaleString("en")} ${count === 1 ? one : many}`;
}

const whole = (text) => text.replaceAll(" ", "\u00a0"); // numbers are not broken between lines

// which press moves the model least, where fidelity was measured: of the first column, which its table averages
function closestTo(budget, column) {
  const grid = view.grids.find((one) => one.heads.includes("answer_kl")), at = grid?.heads.indexOf("answer_kl");
  if (!grid || column !== view.columns[0]) return "";
  const rows = grid.rows.filter((texts) => texts[1] === budget.label && !Number.isNaN(parseFloat(texts[at])));
  const [first, second] = rows.sort((a, b) => parseFloat(a[at]) - parseFloat(b[at]));
  if (!second) return "";
  const said = ([name, ...rest]) => `${name} (${whole(rest[at - 1])}`;
  return `Fidelity is sharper than scores: along the full cache's own answers, ${said(first)} nats per token from its predictions) moves the model least, then ${said(second)}).`;
}
function overviewChoices() {
  const { budgets, start: first } = overviewOf();
  fill(by("judged-budget"), budgets.map((one) => (one.ratio === null ? one.label : `${percent(one)} removed${modeOf(one)}`)));
  fill(by("judged-column"), view.columns);
  by("judged-budget").value = String(first);
  by("judged").hidden = !budgets.length;
}
function overview() {
  const body = by("overview-body"), { budgets, full: fullAt } = overviewOf();
  body.replaceChildren();
  if (!budgets.length) {
    body.append(make("p", { className: "sure", textContent: "No compressed cache was run yet, so there is nothing to choose. Run a press into this folder." }));
    return;
  }
  const budget = budgets[Number(by("judged-budget").value)], column = view.columns[Number(by("judged-column").value)];
  const found = budget.columns[column], cell = (at) => view.lines[at].cells[column];
  const failed = found.failed.length ? ` Not ranked, because every answer failed: ${found.failed.map((at) => view.lines[at].press).join(", ")}.` : "";
  if (!found.ranked.length) {
    body.append(make("p", { className: "sure", textContent: `No press has a score on ${column} at this budget: an average needs all its tasks.${failed}` }));
    return;
  }
  const [best, second] = found.ranked, name = make("strong", { textContent: view.lines[best].press });
  const full = fullAt === null ? undefined : cell(fullAt);
  const against = full && full.score !== null ? `, against ${whole(full.text)} for the full cache` : "";
  body.append(make("p", { className: "verdict" }, `${removed(budget)}, `, name, ` scores highest on ${column}: ${whole(cell(best).text)}${against}.`));
  let sure = "It is the only press with a score here, so there is nothing to compare it with.";
  if (second !== undefined && !found.lead) sure = `Whether it is ahead of ${view.lines[second].press} cannot be tested: they share no complete set of samples.`;
  else if (second !== undefined) sure = found.sure
    ? `That is sure at the 5 % level: its lead over ${view.lines[second].press} is ${found.lead} points (p = ${found.p}).`
    : `That is not sure: its lead over ${view.lines[second].press} is ${found.lead} points, which may be chance (p = ${found.p}). Choose either, or run more samples.`;
  const loss = cell(best).difference === "–" ? "" : ` Difference to the full cache on the same samples: ${whole(cell(best).difference)}.`;
  const level = (found.level || []).filter((at) => at !== second).map((at) => view.lines[at].press);
  if (!found.sure && level.length) sure += ` The same holds against ${listed(level, 6)}.`;
  const kept = view.lines[best].keptValue, more = budget.ratio !== null && kept !== null && Math.abs(kept - 100 * (1 - budget.ratio)) > 1;
  body.append(make("p", { className: "sure", textContent: `${sure}${loss}${more ? ` Measured, it keeps ${view.lines[best].kept} of the cache.` : ""} ${plural(cell(best).n, "answer", "answers")}.${failed}` }));
  const closest = closestTo(budget, column);
  if (closest) body.append(make("p", { className: "sure", textContent: closest }));
  const bars = make("div", { className: "bars" });
  const bar = (at, label, colour, note = "") => {
    const one = cell(at), svg = draw("svg", { viewBox: "0 0 100 16", preserveAspectRatio: "none", "aria-hidden": "true" });
    const across = (from, to, extra) => svg.append(draw("line", { x1: from, x2: to, y1: 8, y2: 8, stroke: colour, "vector-effect": "non-scaling-stroke", ...extra }));
    across(0, 100, { stroke: "var(--rule)" });
    across(one.low, one.high, { "stroke-width": 6, opacity: 0.35 });
    across(one.score, one.score, { y1: 1, y2: 15, "stroke-width": 3 });
    bars.append(make("div", { className: "bar" }, make("span", { className: "name" }, soft(label), note && make("span", { className: "aside", textContent: ` ${note}` })), svg, make("span", { className: "value", textContent: one.text })));
  };
  if (full && full.score !== null) bar(fullAt, "full cache", "var(--ink)");
  const behind = (at) => found.level && at !== best && !found.level.includes(at);
  found.ranked.slice(0, LISTED).forEach((at) => bar(at, view.lines[at].press, behind(at) ? "var(--soft)" : "var(--accent)"));
  found.over.slice(0, LISTED / 2).forEach((at) => bar(at, view.lines[at].press, "var(--soft)", `keeps ${whole(view.lines[at].kept)}, not ranked`));
  body.append(bars);
  const rest = Math.max(0, found.ranked.length - LISTED) + Math.max(0, found.over.length - LISTED / 2);
  const tested = found.level ? ` Grey: behind the best beyond chance (paired test, Holm)${found.over.length ? ", or not ranked" : ""}.` : "";
  body.append(make("p", { className: "quiet", textContent: `Mark: score; bar: 95 % interval, on a scale from 0 to 100.${tested}${rest > 0 ? ` ${plural(rest, "more press stands", "more presses stand")} in the table.` : ""}` }));
}

function legend() {
  const box = by("legend");
  const rank = ranked(), names = pressesOf();
  styles = new Map(names.map((name, at) => [name, look(at)]));
  shown = new Set([...names].sort((a, b) => rank(a) - rank(b) || 0).slice(0, CROWD));
  box.replaceChildren(make("legend", { textContent: names.length > CROWD ? `Presses shown (the best ${CROWD} of ${names.length} to begin with)` : "Presses shown" }));
  for (const name of names) {
    const one = styles.get(name);
    const key = draw("svg", { width: 34, height: 14, "aria-hidden": "true" });
    key.append(draw("line", { x1: 1, x2: 33, y1: 7, y2: 7, stroke: one.colour, "stroke-width": 2, "stroke-dasharray": one.dash }), marker(one.shape, 17, 7, one.colour));
    const tick = make("input", { type: "checkbox", checked: shown.has(name) });
    tick.addEventListener("change", () => { tick.checked ? shown.add(name) : shown.delete(name); chart(); });
    box.append(make("label", {}, tick, key, soft(name)));
  }
}

function chart() {
  const column = view.columns[Number(by("task").value)];
  const width = Math.max(300, Math.min(by("chart").clientWidth || 900, 1100)), height = width < 600 ? 300 : 400;
  const [left, right, top, bottom] = [42, 14, 14, 46];
  const full = view.lines.find((line) => line.baseline)?.cells[column];
  const series = pressesOf().filter((name) => shown.has(name)).map((name) => ({
    name,
    points: view.lines.filter((line) => line.press === name && line.cells[column] && line.cells[column].score !== null)
      .map((line) => ({ line, cell: line.cells[column], kept: line.cells[column].kept ?? line.keptValue / 100 })).sort((a, b) => a.kept - b.kept),
  }));
  const cells = [...series.flatMap((one) => one.points.map((point) => point.cell)), ...(full && full.score !== null ? [full] : [])];
  const low = Math.max(0, Math.floor(Math.min(100, ...cells.map((cell) => cell.low)) / 10) * 10);
  const high = Math.min(100, Math.ceil(Math.max(low + 10, ...cells.map((cell) => cell.high)) / 10) * 10);
  const x = (kept) => left + kept * (width - left - right);
  const y = (score) => top + (1 - (score - low) / (high - low)) * (height - top - bottom);
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": `Score of ${column} against kept fraction` });
  const step = (high - low) / 10 > 5 ? 20 : 10;
  for (let score = low; score <= high; score += step) {
    svg.append(draw("line", { class: "axis", x1: left, x2: width - right, y1: y(score), y2: y(score) }), draw("text", { x: left - 8, y: y(score) + 4, "text-anchor": "end" }, String(score)));
  }
  for (const kept of [0, 0.25, 0.5, 0.75, 1]) svg.append(draw("text", { x: x(kept), y: height - bottom + 20, "text-anchor": kept === 1 ? "end" : "middle" }, `${100 * kept} %`));
  svg.append(draw("text", { x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle" }, "cache kept (measured)"));
  if (full && full.score !== null) {
    svg.append(draw("rect", { class: "fullband", x: left, width: width - left - right, y: y(full.high), height: Math.max(1, y(full.low) - y(full.high)) }));
    svg.append(draw("line", { class: "full", x1: left, x2: width - right, y1: y(full.score), y2: y(full.score) }));
    svg.append(draw("text", { x: left + 6, y: y(full.score) > top + 20 ? y(full.score) - 6 : y(full.score) + 16 }, "full cache"));
  }
  const marks = [], rank = ranked();
  const banded = new Set([...series].sort((a, b) => rank(a.name) - rank(b.name) || 0).slice(0, BANDS).map((one) => one.name)); // more bands hide each other
  for (const one of series) {
    const style = styles.get(one.name), row = [];
    if (!one.points.length) continue;
    const band = [...one.points.map((p) => [x(p.kept), y(p.cell.high)]), ...[...one.points].reverse().map((p) => [x(p.kept), y(p.cell.low)])];
    if (one.points.length > 1 && banded.has(one.name)) svg.append(draw("polygon", { points: band.map((p) => p.join()).join(" "), fill: style.colour, opacity: 0.1 }));
    svg.append(draw("polyline", { points: one.points.map((p) => [x(p.kept), y(p.cell.score)].join()).join(" "), fill: "none", stroke: style.colour, "stroke-width": 2, "stroke-dasharray": style.dash }));
    for (const { line, cell, kept } of one.points) {
      const text = `${line.press}${named(line)}, ${line.kept} kept: ${cell.text}, 95 % interval ${cell.interval}, to the full cache ${cell.difference}, ${cell.n} answers`;
      const point = draw("g", { class: "point", tabindex: "-1", role: "img", "aria-label": text });
      if (one.points.length === 1) point.append(draw("line", { x1: x(kept), x2: x(kept), y1: y(cell.low), y2: y(cell.high), stroke: style.colour, opacity: 0.5 }));
      point.append(draw("circle", { class: "ring", cx: x(kept), cy: y(cell.score), r: 9 }), marker(style.shape, x(kept), y(cell.score), style.colour));
      for (const event of ["focus", "pointerenter"]) point.addEventListener(event, () => (by("reading").textContent = text));
      row.push(point);
    }
    marks.push(row);
  }
  svg.append(...marks.flat());
  if (marks.length) marks[0][0].setAttribute("tabindex", "0"); // one stop for Tab; arrows move on
  svg.addEventListener("keydown", (event) => move(event, marks));
  by("chart").replaceChildren(svg);
  by("reading").textContent = cells.length ? `Point at a mark to read its values, or reach the marks with Tab and move with the arrow keys.${banded.size < series.length ? ` Bands: 95 % intervals of the best ${BANDS} shown.` : ""}` : "No score for this task yet.";
}

function move(event, marks) {
  const [right, down] = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] }[event.key] || [];
  const row = marks.findIndex((points) => points.includes(document.activeElement));
  if (right === undefined || row < 0) return;
  event.preventDefault();
  const points = marks[(row + down + marks.length) % marks.length];
  const at = Math.min(Math.max(marks[row].indexOf(document.activeElement) + right, 0), points.length - 1);
  for (const point of marks.flat()) point.setAttribute("tabindex", point === points[at] ? "0" : "-1");
  points[at].focus();
}

const SCORES = ["text", "interval", "difference"];
function tableChoices() {
  const options = [...by("what").options].filter((one) => SCORES.includes(one.value));
  by("what").replaceChildren(...options, ...view.grids.map((one, at) => make("option", { value: String(at), textContent: one.name })));
  by("what").value = "text";
}
function table() {
  const grid = SCORES.includes(by("what").value) ? null : view.grids[Number(by("what").value)];
  by("score-note").hidden = grid !== null;
  by("grid-note").textContent = grid ? grid.note : "";
  const what = by("what").value, heads = grid ? grid.heads : ["press", budgetHead(), "kept", "n", ...view.columns];
  const number = (text) => (Number.isNaN(parseFloat(text)) ? null : parseFloat(text));
  const exact = (cell) => (cell ? (what === "difference" ? cell.delta : cell.score) : null);
  const lines = grid
    ? grid.rows.map((texts) => ({ texts, baseline: texts[0] === "full cache", values: texts.map((text, at) => (at ? number(text) : text)) }))
    : view.lines.map((line) => {
      const start = [line.press, line.budget || "–", line.kept, line.n], cells = view.columns.map((column) => line.cells[column]);
      const values = [line.press, ...start.slice(1).map(number), ...cells.map(exact)];
      return { texts: [...start, ...cells.map((cell) => cell?.[what] ?? "–")], baseline: line.baseline, values };
    });
  if (sorting) {
    const compare = (a, b) => (typeof a === "string" ? a.localeCompare(b) : a - b);
    lines.sort((a, b) => {
      const [u, v] = [a.values[sorting.at], b.values[sorting.at]];
      return u === null || v === null ? (u === null) - (v === null) : sorting.sign * compare(u, v);
    });
  }
  const head = make("tr");
  heads.forEach((name, at) => {
    const button = make("button", { type: "button", textContent: name });
    button.addEventListener("click", () => {
      const first = at === 0 ? 1 : -1;
      sorting = { at, sign: sorting?.at === at ? -sorting.sign : first };
      table();
      by("table").querySelectorAll("thead button")[at].focus();
    });
    const cell = make("th", { scope: "col" }, button);
    if (sorting?.at === at) cell.setAttribute("aria-sort", sorting.sign > 0 ? "ascending" : "descending");
    head.append(cell);
  });
  const rows = lines.map(({ texts: [press, ...rest], baseline }) => make("tr", { className: baseline ? "baseline" : "" },
    make("th", { scope: "row" }, soft(press)), ...rest.map((text) => make("td", { textContent: text }))));
  by("table").replaceChildren(make("thead", {}, head), make("tbody", {}, ...rows));
}

const samplesOf = () => data.samples.filter((one) => data.views[one.view] === view);
function sampleTasks() {
  const tasks = [...new Set(samplesOf().map((one) => one.task))];
  fill(by("sample-task"), tasks);
  by("samples-note").textContent = data.note;
  sampleNames();
}
function sampleNames() {
  const task = by("sample-task").selectedOptions[0]?.textContent;
  fill(by("sample"), samplesOf().filter((one) => one.task === task).map((one) => one.id));
  sample();
}
const contexts = new Map();
function context(at) {
  if (!contexts.has(at)) {
    const raw = read(`context-${at}`);
    const bytes = (text) => Uint8Array.from(atob(text), (one) => one.charCodeAt(0)).buffer;
    contexts.set(at, { ...raw, spans: new Uint32Array(bytes(raw.spans)), count: (key) => new (raw.width === 1 ? Uint8Array : Uint16Array)(bytes(raw.counts[key])) });
  }
  return contexts.get(at);
}
function sample() {
  const task = by("sample-task").selectedOptions[0]?.textContent, id = by("sample").selectedOptions[0]?.textContent;
  const one = samplesOf().find((other) => other.task === task && other.id === id);
  if (!one) return;
  const mapped = one.answers.find((answer) => answer.context !== null);
  by("answers").closest(".two").classList.toggle("alone", !mapped); // no map, no second column
  by("question").textContent = mapped ? context(mapped.context).questions[one.id] ?? "" : "";
  by("references").textContent = one.references.join(" · ") || "none given";
  const head = make("tr", {}, ...["press", budgetHead(), "score", "answer"].map((text) => make("th", { scope: "col", textContent: text })));
  const best = ranking()?.ranked[0], mappedOnes = one.answers.filter((answer) => answer.context !== null);
  const first = mappedOnes.find((answer) => answer.line === best) || mappedOnes.find((answer) => !view.lines[answer.line].baseline) || one.answers[0];
  const rows = one.answers.map((answer) => {
    const line = view.lines[answer.line];
    const pick = make("input", { type: "radio", name: "variant", checked: answer === first });
    const row = make("tr", {}, make("th", { scope: "row" }, make("label", {}, pick, soft(line.press))),
      make("td", { textContent: line.budget || "–" }), make("td", { textContent: answer.score }), make("td", { className: answer.failed ? "answer failure" : "answer", textContent: answer.answer.trim() || "(empty)" }));
    pick.addEventListener("change", () => choose(one, answer, row));
    if (answer === first) queueMicrotask(() => choose(one, answer, row));
    return row;
  });
  by("answers").replaceChildren(make("thead", {}, head), make("tbody", {}, ...rows));
  start = null;
}
function choose(one, answer, row) {
  by("answers").querySelectorAll("tr.chosen").forEach((other) => other.classList.remove("chosen"));
  row.classList.add("chosen");
  contextOf = { one, answer };
  shade();
}
const PAGE = 4000; // tokens drawn at once: more makes scrolling slow
function shade() {
  const { one, answer } = contextOf, line = view.lines[answer.line];
  const box = by("context"), known = answer.context !== null;
  by("scale").hidden = !known;
  by("context-head").textContent = known ? `Context as ${line.press}${named(line)} keeps it` : "Context";
  box.replaceChildren();
  by("pager").hidden = true;
  if (!known) {
    by("context-note").textContent = "No map of kept tokens was recorded for this answer; kept_maps=N records them for the first N samples of every task.";
    return;
  }
  const read = context(answer.context), counts = read.count(answer.key), spans = read.spans, total = counts.length;
  const evidence = read.evidence[one.id] || [];
  const inside = (from, to) => evidence.some(([a, b]) => from < b && a < to);
  if (start === null) {
    let at = 0;
    while (at < total && evidence.length && spans[2 * at + 1] <= evidence[0][0]) at += 1;
    start = at < total ? Math.floor(at / PAGE) * PAGE : 0;
  }
  const end = Math.min(total, start + PAGE);
  let kept = 0, ofEvidence = 0, lined = 0;
  counts.forEach((count, at) => {
    kept += count;
    if (inside(spans[2 * at], spans[2 * at + 1])) [ofEvidence, lined] = [ofEvidence + count, lined + 1];
  });
  const share = (sum, tokens) => `${((100 * sum) / (tokens * read.entries)).toFixed(1)} %`;
  by("context-note").textContent = `Every token is shaded by how many of its ${read.entries} entries (layers × heads) are kept: ${share(kept, total)} of all.${lined ? ` Of the evidence, outlined, ${share(ofEvidence, lined)} are kept.` : ""}`;
  if (total > PAGE) {
    by("pager").hidden = false;
    by("where").textContent = `tokens ${start + 1} to ${end} of ${total}`;
    by("before").disabled = start === 0;
    by("after").disabled = end === total;
  }
  let node = null, outline = null, state = "", place = start ? spans[2 * start - 1] : 0;
  for (let at = start; at < end; at += 1) {
    const from = Math.max(place, spans[2 * at]), to = spans[2 * at + 1];
    if (to <= place) continue;
    const level = Math.ceil((8 * counts[at]) / read.entries), marked = inside(spans[2 * at], to);
    const next = `${counts[at]} ${marked}`;
    if (next !== state || !node) {
      node = make("span", { className: `k${Math.min(8, level)}`, title: `kept by ${counts[at]} of ${read.entries}` });
      if (!marked) outline = null;
      else if (!outline) box.append((outline = make("span", { className: "ev" })));
      (outline || box).append(node);
      state = next;
    }
    node.append(read.text.slice(place, to));
    place = to;
  }
  const lit = box.querySelector(".ev");
  box.scrollTop = lit ? Math.max(0, lit.offsetTop - box.offsetTop - box.clientHeight / 3) : 0;
}

function choosePage(at) {
  view = data.views[at];
  sorting = null;
  by("title").textContent = view.title;
  const failed = data.counts.failed ? `, ${data.counts.failed.toLocaleString("en")} of them failed` : "";
  const lines = view.lines.length, tasks = view.columns.length - view.averages.length;
  by("run").textContent = `${lines} variants (${pressesOf().length} presses at their ratios, and the full cache where it was run) on ${tasks} task${tasks === 1 ? "" : "s"}. ${data.counts.records.toLocaleString("en")} answers in all${failed}.`;
  fill(by("task"), view.columns);
  overviewChoices();
  overview();
  legend();
  chart();
  tableChoices();
  table();
  sampleTasks();
}
if (data.views.length > 1) by("view-choice").hidden = false;
fill(by("view"), data.views.map((one) => one.title));
by("view").addEventListener("change", () => choosePage(Number(by("view").value)));
by("judged-budget").addEventListener("change", overview);
by("judged-column").addEventListener("change", overview);
by("task").addEventListener("change", chart);
by("what").addEventListener("change", () => { sorting = null; table(); });
by("sample-task").addEventListener("change", sampleNames);
by("sample").addEventListener("change", sample);
by("before").addEventListener("click", () => { start -= PAGE; shade(); });
by("after").addEventListener("click", () => { start += PAGE; shade(); });
let drawn = window.innerWidth;
window.addEventListener("resize", () => { if (window.innerWidth !== drawn) { drawn = window.innerWidth; chart(); } });
choosePage(0);
document.documentElement.dataset.ready = "true";
