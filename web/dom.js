// Small helpers for the page's DOM. Text is only ever set as text, and only when it changed, so
// that a selection, the focus and the scroll position survive the next reading.

/** An element with a class, text and children. */
export function make(tag, className = "", ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children);
  return element;
}

export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function setAttribute(element, name, value) {
  if (value === null) element.removeAttribute(name);
  else if (element.getAttribute(name) !== value) element.setAttribute(name, value);
}

export const byId = (id) => document.getElementById(id);

/**
 * Keeps one child of `parent` for each item, in the items' order. `build(item)` makes the element
 * once, `update(element, item)` fills it at every reading.
 */
export function keyed(parent, items, keyOf, build, update) {
  const known = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  let at = parent.firstElementChild;
  for (const item of items) {
    const key = String(keyOf(item));
    let element = known.get(key);
    known.delete(key);
    if (!element) {
      element = build(item);
      element.dataset.key = key;
    }
    if (element === at) at = at.nextElementSibling;
    else parent.insertBefore(element, at);
    update(element, item);
  }
  for (const gone of known.values()) gone.remove();
}

/** A table row: a header cell, then cells of these classes. */
export function row(...classes) {
  const tr = make("tr");
  classes.forEach((className, i) => {
    const cell = make(i === 0 ? "th" : "td", className);
    if (i === 0) cell.scope = "row";
    tr.append(cell);
  });
  return tr;
}

/** Fills a row's cells with texts. */
export function fill(tr, ...texts) {
  texts.forEach((text, i) => setText(tr.cells[i], text));
}

/** A name that may break after its underscores. */
export function breakable(name) {
  const parts = name.split(/(?<=_)/);
  return parts.flatMap((part, i) => (i === 0 ? [part] : [document.createElement("wbr"), part]));
}
