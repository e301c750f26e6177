// Exports the results as CSV and JSON files.

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

export function asCsv(items) {
  const classes = [...new Set(items.flatMap(({ outcome }) => Object.keys(outcome.probabilities ?? {})))];
  const head = [...Object.keys(COLUMNS), ...classes.map((name) => `probability ${name}`)];
  const rows = items.map((item) => [
    ...Object.values(COLUMNS).map((pick) => pick(item)),
    ...classes.map((name) => item.outcome.probabilities?.[name]),
  ]);
  // Spreadsheets detect UTF-8 by the byte order mark.
  return `\ufeff${[head, ...rows].map((row) => row.map(cell).join(",")).join("\r\n")}\r\n`;
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

export function download(text, name, type) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
