// Exports the results as CSV and JSON files.

const COLUMNS = ["name", "label", "confidence", "abstained", "reason", "nearest_label", "nearest_confidence", "error_code", "error_message", "model_version"];

export function asCsv(items) {
  const rows = items.map(({ name, outcome }) => [
    name,
    outcome.label,
    outcome.confidence,
    outcome.abstained,
    outcome.reason,
    outcome.nearest_label,
    outcome.nearest_confidence,
    outcome.error?.code,
    outcome.error?.message,
    outcome.model?.version,
  ]);
  // Spreadsheets detect UTF-8 by the byte order mark.
  return `\ufeff${[COLUMNS, ...rows].map((row) => row.map(cell).join(",")).join("\r\n")}\r\n`;
}

// Spreadsheets treat text that begins with these characters as a formula.
const FORMULA = /^[=+\-@\t\r]/;

function cell(value) {
  if (typeof value === "number" || typeof value === "boolean") return String(value);
  const text = value ?? "";
  const safe = FORMULA.test(text) ? `'${text}` : text;
  return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

export function asJson(items) {
  return JSON.stringify(items.map(({ name, outcome }) => ({ name, ...outcome })), null, 2) + "\n";
}

export function download(text, name, type) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
