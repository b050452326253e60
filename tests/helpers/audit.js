// Looks at every text inside of .jaxremat that is shown; leaves a JSON record in an element named audit.
const audit = () => {
  const frames = [...document.querySelectorAll(".jaxremat")];
  const colour = (text) => {
    const found = (text.match(/[\d.]+/g) || ["0", "0", "0"]).map(Number);
    return found.length < 4 ? [...found, 1] : found;
  };
  const over = (front, back) => [0, 1, 2].map((i) => front[3] * front[i] + (1 - front[3]) * back[i]);
  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((c) => ((c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const background = (element) => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) {
      const c = colour(getComputedStyle(e).backgroundColor);
      if (c[3] > 0) layers.push(c);
      if (c[3] === 1) break;
    }
    return layers.reverse().reduce((back, front) => over(front, back), [255, 255, 255]);
  };
  const opacity = (element) => {
    let all = 1;
    for (let e = element; e; e = e.parentElement) all *= Number(getComputedStyle(e).opacity);
    return all;
  };
  const texts = [];
  for (const frame of frames) {
    const walker = document.createTreeWalker(frame, NodeFilter.SHOW_TEXT);
    for (let node = walker.nextNode(); node; node = walker.nextNode()) {
      const element = node.parentElement;
      const style = getComputedStyle(element);
      if (!node.textContent.trim() || element.tagName === "STYLE" || element.tagName === "title") continue;
      if (style.visibility === "hidden" || opacity(element) === 0) continue;
      if (element.closest("details:not([open])") && !element.closest("summary")) continue;
      const range = document.createRange();
      range.selectNodeContents(node);
      const boxes = element.namespaceURI.endsWith("svg") ? [element.getBoundingClientRect()] : [...range.getClientRects()];
      const box = range.getBoundingClientRect();
      if (!box.width) continue;
      const inSvg = element.namespaceURI.endsWith("svg");
      const scale = inSvg ? element.getScreenCTM().a : 1;
      const ink = colour(inSvg ? style.fill : style.color);
      const back = background(element);
      ink[3] *= opacity(element);
      const [a, b] = [luminance(over(ink, back)), luminance(back)].sort((x, y) => y - x);
      texts.push({
        text: node.textContent.trim().slice(0, 60), boxes, frame: frame.getBoundingClientRect(),
        contrast: (a + 0.05) / (b + 0.05), pixels: parseFloat(style.fontSize) * scale,
      });
    }
  }
  const meet = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
    && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 3;
  const overlaps = [];
  texts.forEach((t, i) => texts.slice(i + 1).forEach((u) => {
    if (t.boxes.some((a) => u.boxes.some((b) => meet(a, b)))) overlaps.push([t.text, u.text]);
  }));
  const outside = texts.filter((t) => t.boxes.some((b) => b.right > t.frame.right + 1 || b.left < t.frame.left - 1));
  const charts = [...document.querySelectorAll(".jaxremat .jr-charts")];
  const fill = charts.map((c) => [...c.querySelectorAll("svg")].map((s) => s.getBoundingClientRect().right)
    .reduce((a, b) => Math.max(a, b), 0) / c.getBoundingClientRect().right);
  const record = {
    texts: texts.length, overlaps: overlaps.slice(0, 12), outside: outside.map((t) => t.text).slice(0, 12),
    faint: texts.filter((t) => t.contrast < 4.5).map((t) => [t.text, t.contrast]).slice(0, 12),
    small: texts.filter((t) => t.pixels < 9).map((t) => [t.text, t.pixels]).slice(0, 12), fill,
    shown: texts.map((t) => t.text),
  };
  const pre = document.createElement("pre");
  pre.id = "audit";
  pre.textContent = JSON.stringify(record);
  document.body.append(pre);
};
addEventListener("load", () => setTimeout(audit, 1500)); // outputs may fade in
