// What a page looks like, measured by its geometry: evaluated in the page, see browser.py.
(() => {
const texts = function* () {
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode, parent = node.parentElement;
    if (node.data.trim() && !parent.closest("script, style, option, noscript, .skip") && parent.checkVisibility()) yield [node, parent];
  }
};
const layout = () => {
  const problems = [], boxes = [], width = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth > width) problems.push(`the page is ${document.documentElement.scrollWidth} wide in ${width}`);
  const seen = (node, rect) => { // the part that scrolling parents show
    let [left, top, right, bottom] = [rect.left, rect.top, rect.right, rect.bottom];
    for (let parent = node; parent && parent !== document.body; parent = parent.parentElement) {
      if (getComputedStyle(parent).overflow === "visible") continue;
      const frame = parent.getBoundingClientRect();
      [left, right] = [Math.max(left, frame.left), Math.min(right, frame.right)];
      [top, bottom] = [Math.max(top, frame.top), Math.min(bottom, frame.bottom)];
    }
    return { left, top, right, bottom };
  };
  const add = (node, rect, name) => {
    const box = seen(node.matches("select, button, input, svg") ? node.parentElement : node, rect);
    if (box.right - box.left < 1 || box.bottom - box.top < 1) return;
    if (box.left < -1 || box.right > width + 1) problems.push(`out of sight: ${name}`);
    boxes.push({ ...box, node, name });
  };
  for (const [text, parent] of texts()) {
    const range = document.createRange(), name = text.data.trim().slice(0, 40);
    range.selectNodeContents(text);
    const lines = [...range.getClientRects()];
    for (const rect of lines) add(parent, rect, name);
    if (lines.length > 2 && text.data.trim().length / lines.length < 4) problems.push(`squeezed: ${name}`);
    const svg = parent.closest("svg")?.getBoundingClientRect();
    const own = range.getBoundingClientRect();
    if (svg && (own.left < svg.left - 1 || own.right > svg.right + 1 || own.bottom > svg.bottom + 1)) problems.push(`cut: ${text.data}`);
  }
  for (const node of document.querySelectorAll("select, button, input, svg")) {
    if (node.checkVisibility()) add(node, node.getBoundingClientRect(), `${node.tagName} ${node.id}`);
  }
  boxes.sort((a, b) => a.top - b.top);
  boxes.forEach((one, at) => {
    for (let next = at + 1; next < boxes.length && boxes[next].top < one.bottom - 1.5; next += 1) {
      const other = boxes[next];
      if (one.node.contains(other.node) || other.node.contains(one.node)) continue;
      if (Math.min(one.right, other.right) - Math.max(one.left, other.left) > 1.5) problems.push(`over each other: ${one.name} / ${other.name}`);
    }
  });
  const canvas = document.createElement("canvas").getContext("2d");
  for (const node of document.querySelectorAll("select")) {
    if (!node.checkVisibility()) continue;
    canvas.font = getComputedStyle(node).font;
    const needed = canvas.measureText(node.selectedOptions[0]?.textContent ?? "").width;
    if (needed + 20 > node.clientWidth) problems.push(`cut choice: ${node.selectedOptions[0].textContent} in ${node.clientWidth}`);
  }
  const panels = { "#overview .bar": 1, "#chart .point": 1, "#legend label": 1, "#table tbody td": 1, "#answers tbody td": 1, "#context span": 1 };
  for (const [panel, least] of Object.entries(panels)) if (document.querySelectorAll(panel).length < least) problems.push(`empty: ${panel}`);
  return problems;
};
const faint = (least) => {
  const parts = (colour) => { const n = colour.match(/[\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n; };
  const over = (front, back) => back.map((value, at) => front[3] * front[at] + (1 - front[3]) * value);
  const ground = (node) => {
    const layers = [];
    for (; node; node = node.parentElement) {
      layers.push(parts(getComputedStyle(node).backgroundColor));
      if (layers[layers.length - 1][3] === 1) break;
    }
    return layers.reverse().reduce((back, front) => over(front, back), [255, 255, 255]);
  };
  const light = (rgb) => rgb.map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, at) => sum + v * [0.2126, 0.7152, 0.0722][at], 0);
  const found = new Set();
  for (const [text, parent] of texts()) {
    const style = getComputedStyle(parent), back = ground(parent);
    const front = over(parts(parent.closest("svg") ? style.fill : style.color), back);
    const [low, high] = [light(front), light(back)].sort((a, b) => a - b);
    const ratio = (high + 0.05) / (low + 0.05);
    if (ratio < least) found.add(`${ratio.toFixed(2)}: ${parent.className?.baseVal ?? parent.className} ${text.data.trim().slice(0, 30)}`);
  }
  return [...found];
};
return { layout, faint };
})()
