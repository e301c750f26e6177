// Writes a Parquet file: one row group of optional columns, PLAIN and uncompressed.
// Sources: parquet.thrift and Encodings.md of apache/parquet-format, and Thrift's compact protocol.

const TYPES = { boolean: 0, int: 1, double: 5, text: 6 };
const [PLAIN, RLE, UTF8, OPTIONAL] = [0, 3, 0, 1];
const MAGIC = [0x50, 0x41, 0x52, 0x31];

// `columns` are [name, type, values] with a type of TYPES; null and undefined are missing values.
export function asParquet(columns, rows) {
  const parts = [Uint8Array.from(MAGIC)];
  let at = MAGIC.length;
  const chunks = columns.map(([name, type, values]) => {
    const page = pageOf(type, values);
    const head = struct({ 1: i32(0), 2: i32(page.length), 3: i32(page.length), 5: nested({ 1: i32(rows), 2: i32(PLAIN), 3: i32(RLE), 4: i32(RLE) }) });
    const size = head.length + page.length;
    const about = { 1: i32(TYPES[type]), 2: list(5, [varint(zigzag(PLAIN)), varint(zigzag(RLE))]), 3: list(8, [textBytes(name)]), 4: i32(0), 5: i64(rows), 6: i64(size), 7: i64(size), 9: i64(at) };
    const chunk = struct({ 2: i64(at), 3: nested(about) });
    parts.push(Uint8Array.from(head), page);
    at += size;
    return chunk;
  });
  const root = struct({ 4: text("outcomes"), 5: i32(columns.length) });
  const schema = columns.map(([name, type]) => struct({ 1: i32(TYPES[type]), 3: i32(OPTIONAL), 4: text(name), ...(type === "text" && { 6: i32(UTF8) }) }));
  const group = struct({ 1: list(12, chunks), 2: i64(at - MAGIC.length), 3: i64(rows) });
  const footer = struct({ 1: i32(1), 2: list(12, [root, ...schema]), 3: i64(rows), 4: list(12, [group]), 6: text("ext-classify") });
  parts.push(Uint8Array.from(footer), littleEndian(4, (view) => view.setUint32(0, footer.length, true)), Uint8Array.from(MAGIC));
  return new Blob(parts);
}

// Which values are there, as one run of bits after its length, and then the values.
function pageOf(type, values) {
  const present = bits(values.map((value) => value !== null && value !== undefined));
  const levels = [...varint((present.length << 1) | 1), ...present];
  const some = values.filter((value) => value !== null && value !== undefined);
  const length = littleEndian(4, (view) => view.setUint32(0, levels.length, true));
  return joined([length, Uint8Array.from(levels), ...(type === "boolean" ? [Uint8Array.from(bits(some))] : some.map((value) => plain(type, value)))]);
}

function plain(type, value) {
  if (type === "int") return littleEndian(4, (view) => view.setInt32(0, value, true));
  if (type === "double") return littleEndian(8, (view) => view.setFloat64(0, value, true));
  const bytes = new TextEncoder().encode(value);
  return joined([littleEndian(4, (view) => view.setUint32(0, bytes.length, true)), bytes]);
}

function bits(flags) {
  const bytes = new Array(Math.ceil(flags.length / 8)).fill(0);
  flags.forEach((flag, at) => (bytes[at >> 3] |= Number(flag) << (at & 7)));
  return bytes;
}

function littleEndian(size, write) {
  const bytes = new Uint8Array(size);
  write(new DataView(bytes.buffer));
  return bytes;
}

function joined(parts) {
  const whole = new Uint8Array(parts.reduce((size, part) => size + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

// Thrift's compact protocol: a field is [type, bytes], by its number.

function struct(fields) {
  let last = 0;
  const bytes = Object.entries(fields).flatMap(([number, [type, value]]) => {
    const step = number - last;
    last = Number(number);
    return [(step << 4) | type, ...value];
  });
  return [...bytes, 0];
}

function i32(value) {
  return [5, varint(zigzag(value))];
}

function i64(value) {
  return [6, varint(zigzag(value))];
}

function text(value) {
  return [8, textBytes(value)];
}

function nested(fields) {
  return [12, struct(fields)];
}

function list(type, elements) {
  const head = elements.length < 15 ? [(elements.length << 4) | type] : [0xf0 | type, ...varint(elements.length)];
  return [9, [...head, ...elements.flat()]];
}

function textBytes(value) {
  const bytes = new TextEncoder().encode(value);
  return [...varint(bytes.length), ...bytes];
}

function zigzag(value) {
  return 2 * value; // no number here is negative
}

// Not by shifting, which cuts numbers to 32 bits.
function varint(value) {
  const bytes = [];
  for (; value > 127; value = Math.floor(value / 128)) bytes.push((value % 128) | 128);
  return [...bytes, value];
}
