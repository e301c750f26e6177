// Exports the results as CSV, JSON and Parquet files.

import { asParquet } from "./parquet.js";

const COLUMNS = {
  name: ({ name }) => name,
  folder_class: ({ truth }) => truth,
  label: ({ outcome }) => outcome.label,
  confidence: ({ outcome }) => outcome.confidence,
  abstained: ({ outcome }) => outcome.abstained,
  reason: ({ outcome }) => outcome.reason,
  nearest_label: ({ outcome }) => outcome.nearest_label,
  nearest_confidence: ({ outcome }) => outcome.nearest_confidence,
  error_code: ({ outcome }) => outcome.error?.code,
  error_message: ({ outcome }) => outcome.error?.message,
  box_x0: ({ outcome }) => outcome.evidence?.box[0],
  box_y0: ({ outcome }) => outcome.evidence?.box[1],
  box_x1: ({ outcome }) => outcome.evidence?.box[2],
  box_y1: ({ outcome }) => outcome.evidence?.box[3],
  model_name: ({ outcome }) => outcome.model?.name,
  model_version: ({ outcome }) => outcome.model?.version,
};

const TYPES = { confidence: "double", abstained: "boolean", nearest_confidence: "double", box_x0: "int", box_y0: "int", box_x1: "int", box_y1: "int" };

// [name, function of an item] pairs.
function columnsOf(items) {
  const classes = [...new Set(items.flatMap(({ outcome }) => Object.keys(outcome.probabilities ?? {})))];
  return [...Object.entries(COLUMNS), ...classes.map((name) => [`probability ${name}`, ({ outcome }) => outcome.probabilities?.[name]])];
}

export function asCsv(items) {
  const columns = columnsOf(items);
  const rows = items.map((item) => columns.map(([, pick]) => pick(item)));
  // Spreadsheets detect UTF-8 by the byte order mark.
  return `\ufeff${[columns.map(([name]) => name), ...rows].map((row) => row.map(cell).join(",")).join("\r\n")}\r\n`;
}

export function asParquetFile(items) {
  const typeOf = (name) => TYPES[name] ?? (name.startsWith("probability ") ? "double" : "text");
  return asParquet(columnsOf(items).map(([name, pick]) => [name, typeOf(name), items.map(pick)]), items.length);
}

// Spreadsheets treat text that begins with these characters as a formula.
const FORMULA = /^[=+\-@\t\r]/;

function cell(value) {
  if (typeof value === "number" || typeof value === "boolean") return String(value);
  const text = value ?? "";
  const safe = FORMULA.test(text) ? `'${text}` : text;
  return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

// Without the heatmaps, which take a hundred times the space of the rest.
export function asJson(items) {
  const records = items.map(({ name, truth, outcome }) => ({
    name,
    folder_class: truth,
    ...outcome,
    evidence: outcome.evidence ? { box: outcome.evidence.box } : null,
  }));
  return JSON.stringify(records, null, 2) + "\n";
}

export function download(content, name, type) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([content], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
