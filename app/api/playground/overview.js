// All answers at a glance: counts, the distribution of labels, and how they agree with the folders' names.

import { SURE, isRight, kindOf, withText } from "./outcome.js";

const KINDS = { sure: "sure", unsure: `unsure (below ${100 * SURE} %)`, abstained: "abstained", error: "errors" };
const MOST_CHIPS = 12;
const get = (id) => document.getElementById(id);

// A function of an image's name: the class that its nearest folder with a class's name says, in any case; null without one.
export function truthsFrom(classes) {
  const known = new Map(classes.map((one) => [plain(one), one]));
  return (name) => name.split("/").slice(0, -1).map((folder) => known.get(plain(folder))).findLast(Boolean) ?? null;
}

function plain(text) {
  return text.normalize("NFC").trim().toLowerCase();
}

// A filter is "", "kind:unsure", "wrong" or "label:Crazing".
export function passes({ outcome, ...item }, filter) {
  if (!filter) return true;
  if (filter === "wrong") return isRight({ outcome, ...item }) === false;
  const [what, value] = [filter.slice(0, filter.indexOf(":")), filter.slice(filter.indexOf(":") + 1)];
  return what === "kind" ? kindOf(outcome) === value : outcome?.label === value;
}

// "5 of 6: 3 sure, 1 unsure, 1 abstained"
export function describe(items) {
  const counts = countBy(items, (item) => kindOf(item.outcome));
  const done = items.length - (counts.get("waiting") ?? 0);
  const parts = Object.keys(KINDS).filter((kind) => counts.has(kind)).map((kind) => named(kind, counts.get(kind)));
  return `${done} of ${items.length}${parts.length ? `: ${parts.join(", ")}` : ""}`;
}

function named(kind, count) {
  return `${count} ${kind === "error" && count > 1 ? "errors" : kind}`;
}

export function listFilters(items) {
  const select = get("filter");
  const kinds = countBy(items, (item) => kindOf(item.outcome));
  const wrong = items.filter((item) => isRight(item) === false).length;
  const options = [
    ["", "all"],
    ...Object.entries(KINDS).filter(([kind]) => kinds.has(kind)).map(([kind, name]) => [`kind:${kind}`, name]),
    ...(wrong ? [["wrong", "wrong by folder"]] : []),
    ...labelCounts(items).map(([label]) => [`label:${label}`, label]),
  ];
  const wanted = options.some(([value]) => value === select.value) ? select.value : "";
  // An open list closes when its options change.
  if (options.map(String).join("\n") === [...select.options].map(({ value, text }) => String([value, text])).join("\n")) return;
  select.replaceChildren(...options.map(([value, name]) => new Option(name, value, false, value === wanted)));
}

// A chip for each label, whose bar is its share; a click filters by it.
export function showDistribution(items, choose) {
  const counts = labelCounts(items);
  const most = Math.max(1, ...counts.map(([, count]) => count));
  const focused = document.activeElement?.dataset.label;
  const chips = counts.slice(0, MOST_CHIPS).map(([label, count]) => {
    const chip = document.createElement("button");
    chip.type = "button";
    chip.dataset.label = label;
    chip.setAttribute("aria-pressed", String(get("filter").value === `label:${label}`));
    const bar = document.createElement("span");
    bar.className = "share";
    bar.style.inlineSize = `${(100 * count) / most}%`;
    chip.append(withText("span", label), withText("b", count), bar);
    chip.addEventListener("click", () => choose(`label:${label}`));
    const entry = document.createElement("li");
    entry.append(chip);
    return entry;
  });
  if (counts.length > MOST_CHIPS) chips.push(withText("li", `and ${counts.length - MOST_CHIPS} more labels`));
  get("labels").replaceChildren(...chips);
  if (focused) get("labels").querySelector(`[data-label="${CSS.escape(focused)}"]`)?.focus();
}

function labelCounts(items) {
  const counts = countBy(items.filter(({ outcome }) => outcome?.label), ({ outcome }) => outcome.label);
  return [...counts].sort(([a, m], [b, n]) => n - m || a.localeCompare(b));
}

// Accuracy and confusion table of the images in folders whose names are classes.
export function showTruth(items) {
  const judged = items.filter(({ truth, outcome }) => truth && outcome);
  get("truth").hidden = !judged.length;
  if (!judged.length) return;
  const labelled = judged.filter(({ outcome }) => outcome.label);
  const right = labelled.filter(isRight).length;
  const counts = countBy(judged, ({ outcome }) => kindOf(outcome));
  const others = ["abstained", "error"].filter((kind) => counts.has(kind)).map((kind) => `, ${named(kind, counts.get(kind))}`);
  const outside = items.filter(({ truth }) => !truth).length;
  if (outside) others.push(`; ${outside} not in a class's folder`);
  get("accuracy").textContent = `${Math.floor((1000 * right) / Math.max(1, labelled.length)) / 10} % right by folder name: ${right} of ${labelled.length} answers${others.join("")}`;
  const answers = countBy(judged, (item) => JSON.stringify([item.truth, answerOf(item)]));
  const truths = [...new Set(judged.map(({ truth }) => truth))].sort();
  const columns = [...new Set([...truths, ...judged.map(answerOf)])];
  const head = ["folder", ...columns].map((name) => scoped(name, "col"));
  const rows = truths.map((truth) => [
    scoped(truth, "row"),
    ...columns.map((column) => {
      const count = answers.get(JSON.stringify([truth, column])) ?? 0;
      const field = withText("td", count || "·");
      if (count) field.className = truth === column ? "right" : "wrong";
      return field;
    }),
  ]);
  get("confusion").replaceChildren(...[head, ...rows].map((cells) => {
    const row = document.createElement("tr");
    row.append(...cells);
    return row;
  }));
}

function scoped(name, scope) {
  const field = withText("th", name);
  field.scope = scope;
  return field;
}

function answerOf({ outcome }) {
  return outcome.label ?? (outcome.error ? "(error)" : "(abstained)");
}

function countBy(items, key) {
  const counts = new Map();
  for (const item of items) counts.set(key(item), (counts.get(key(item)) ?? 0) + 1);
  return counts;
}
