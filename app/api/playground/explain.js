// Errors in words, and the kinds of files that are no images.

const CONVERT = "Convert it to JPEG or PNG, for example with ImageMagick (magick a.heic a.jpg).";
const WORDS = {
  corrupt_image: ["This image is damaged.", "Check that it opens in an image viewer. If not, copy it from its source again."],
  unsupported_format: ["This format cannot be read.", "Save it as PNG or JPEG with an image editor."],
  image_too_large: ["This image has too many pixels.", "Reduce its width and height, or raise the service's limits."],
  payload_too_large: ["This file is too large.", "Reduce its size, or raise the service's limits."],
  classify_timeout: ["This image takes too long to decode.", "Save it again with an image editor."],
  classifier_died: ["The service crashes on this image.", "Save it again with an image editor, and report the file."],
  prediction_failed: ["The network has no valid answer for this image.", "Check the network with its own samples."],
  overloaded: ["The service is overloaded.", "Choose the image again later."],
  unreachable: ["The service does not answer.", "Check that it is running, then choose the image again."],
  unreadable: ["The browser cannot read this file.", "It was changed, moved or deleted, or you may not open it. Choose it again."],
};
const FORMATS = {
  HEIC: ["This is a HEIC photograph.", `${CONVERT} An iPhone takes JPEG with Settings, Camera, Formats, Most Compatible.`],
  AVIF: ["This is an AVIF image.", CONVERT.replace("a.heic", "a.avif")],
  PDF: ["This is a PDF document.", "Export its pages as PNG or JPEG."],
  GIF: ["This is a GIF.", "Save it as PNG."],
  SVG: ["This is an SVG drawing.", "Export it as PNG."],
  "web page": ["This is a web page.", "Open it in a browser and save the image itself."],
  archive: ["This is an archive.", "Unpack it and choose the folder."],
  text: ["This is a text file.", "Choose a BMP, PNG, JPEG, TIFF or WebP file."],
};
const SIGNATURES = [
  [/^....ftyp(heic|heix|hevc|hevx|heim|heis|mif1|msf1)/s, "HEIC"],
  [/^....ftypavi[fs]/s, "AVIF"],
  [/^%PDF/, "PDF"],
  [/^GIF8/, "GIF"],
  [/^\s*(<\?xml.*)?<svg/s, "SVG"],
  [/^\s*<(!doctype html|html)/i, "web page"],
  [/^(PK\x03\x04|\x1f\x8b|7z\xbc\xaf|Rar!)/, "archive"],
  [/^[\t\n\r\x20-\x7e\x80-\xff]+$/, "text"],
];
const HEAD_BYTES = 512;

// A title and advice for people.
export async function explain(error, file) {
  if (!file.size) return asWords(["The file is empty.", "Copy it from its source again."]);
  const kind = error.code === "unsupported_format" ? await kindInside(file) : null;
  const code = error.code === "image_too_large" && / bytes /.test(error.message) ? "payload_too_large" : error.code;
  return asWords(FORMATS[kind] ?? WORDS[code] ?? ["This image has no answer.", error.message]);
}

function asWords([title, advice]) {
  return { title, advice };
}

async function kindInside(file) {
  const bytes = new Uint8Array(await file.slice(0, HEAD_BYTES).arrayBuffer().catch(() => new ArrayBuffer()));
  const head = String.fromCharCode(...bytes);
  return SIGNATURES.find(([signature]) => signature.test(head))?.[1];
}

const SUFFIXES = {
  HEIC: "heic heif",
  text: "txt md csv tsv json jsonl xml yaml yml log ini html htm py",
  video: "mp4 mov avi mkv webm m4v",
  archive: "zip gz tgz tar 7z rar",
};

// The kind of a file that a folder holds beside its images, from its name.
export function kindByName(name) {
  if (name.startsWith(".") || /^(thumbs\.db|desktop\.ini)$/i.test(name)) return "hidden";
  const suffix = /\.([^.]+)$/.exec(name)?.[1].toLowerCase();
  if (!suffix) return "without suffix";
  const known = Object.entries(SUFFIXES).find(([, suffixes]) => suffixes.split(" ").includes(suffix));
  return known?.[0] ?? suffix.toUpperCase();
}

// "4 skipped: 2 HEIC, 1 PDF, 1 text"
export function describeSkipped(kinds) {
  const counts = new Map();
  for (const kind of kinds) counts.set(kind, (counts.get(kind) ?? 0) + 1);
  const parts = [...counts].sort(([a, m], [b, n]) => n - m || a.localeCompare(b)).map(([kind, count]) => `${count} ${kind}`);
  const advice = counts.has("HEIC") ? ". Convert HEIC photographs to JPEG" : "";
  return `${kinds.length} skipped: ${parts.join(", ")}${advice}.`;
}
