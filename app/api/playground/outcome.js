// What an outcome says, in the words and the order that the page shows.

// An answer below this confidence is unsure: a person should look at the image.
export const SURE = 0.9;

// waiting, sure, unsure, abstained or error. Each has a shape in index.html and a colour in playground.css.
export function kindOf(outcome) {
  if (!outcome) return "waiting";
  if (outcome.error) return "error";
  if (outcome.abstained) return "abstained";
  return outcome.confidence >= SURE ? "sure" : "unsure";
}

export function verdictOf({ outcome, words }) {
  if (!outcome) return "waiting";
  if (outcome.error) return words?.title ?? outcome.error.code;
  if (outcome.abstained) return "abstained";
  return `${outcome.label} ${percent(outcome.confidence)}`;
}

export function reasonOf({ outcome, words }) {
  if (outcome?.error) return words?.advice ?? outcome.error.message;
  if (!outcome?.abstained) return "";
  return `Unlike the training images. Nearest: ${outcome.nearest_label} ${percent(outcome.nearest_confidence)}.`;
}

// [class, probability] pairs, the most probable one first.
export function ranked(outcome) {
  return Object.entries(outcome?.probabilities ?? {}).sort(([, a], [, b]) => b - a);
}

// null without a folder whose name is a class, or without a label: an abstention or an error is not a wrong answer.
export function isRight({ truth, outcome }) {
  return truth && outcome?.label ? outcome.label === truth : null;
}

// Rounding never turns a probability into a certainty. The space does not break.
export function percent(share) {
  if (share === 1 || share === 0) return `${100 * share}\u00a0%`;
  if (share > 0.999) return ">99.9\u00a0%";
  return share < 0.001 ? "<0.1\u00a0%" : `${(100 * share).toFixed(1)}\u00a0%`;
}

// Made once an image is seen: each URL is a call to another process, which adds up to seconds for thousands.
export function urlOf(item) {
  item.url ??= URL.createObjectURL(item.file);
  return item.url;
}

export function barOf([name, probability], top) {
  const row = document.createElement("li");
  const meter = document.createElement("meter");
  meter.value = probability;
  meter.setAttribute("aria-label", `${name} ${percent(probability)}`);
  row.append(withText("span", name), meter, withText("span", percent(probability)));
  row.classList.toggle("top", name === top);
  return row;
}

export function withText(tag, text) {
  const element = document.createElement(tag);
  element.textContent = text;
  return element;
}

// Marks an element with the colour and the shape of a kind.
export function mark(element, kind) {
  element.dataset.kind = kind;
  element.querySelector(".shape use").setAttribute("href", `#shape-${kind}`);
}

// Says whether the answer agrees with the folder's name.
export function markTruth(element, item) {
  const right = isRight(item);
  element.textContent = right === null ? "" : right ? `✓ right: folder ${item.truth}` : `✗ wrong: folder ${item.truth}`;
  element.classList.toggle("wrong", right === false);
}
