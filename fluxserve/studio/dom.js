// The few words that the page is built with. Text is always text: nothing is ever parsed as HTML.

export const $ = id => document.getElementById(id);

/** An element; what is a function is a listener, what starts with aria- or data- an attribute, the rest properties. */
export function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (/^(aria|data)-|^(role|for)$/.test(name)) node.setAttribute(name, value);
    else node[name] = value;
  }
  node.append(...children);
  return node;
}

export const button = (text, click, properties = {}) =>
  el("button", { type: "button", textContent: text, click, ...properties });

/** An icon of a rectangle in these proportions, 16 units high or wide. */
export function shape(width, height) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const rect = document.createElementNS("http://www.w3.org/2000/svg", "rect");
  const scale = 12 / Math.max(width, height);
  const [w, h] = [width * scale, height * scale];
  const place = { x: 8 - w / 2, y: 8 - h / 2, width: w, height: h, rx: 1.5 };
  for (const [name, value] of Object.entries(place)) rect.setAttribute(name, value);
  svg.setAttribute("viewBox", "0 0 16 16");
  svg.setAttribute("aria-hidden", "true");
  svg.append(rect);
  return svg;
}

/** Says something to screen readers. */
export function announce(text) {
  $("announcer").textContent = text;
}

/** Blobs as URLs, each made once. The URL is let go of with `release`. */
const urls = new WeakMap();

export function urlOf(blob) {
  if (!urls.has(blob)) urls.set(blob, URL.createObjectURL(blob));
  return urls.get(blob);
}

export function release(blob) {
  if (blob && urls.has(blob)) URL.revokeObjectURL(urls.get(blob));
  if (blob) urls.delete(blob);
}
