// What crosses between the kernel and a page: JSON in which an array stands as
// {"$array": number of its buffer, dtype, shape}. `llama_loupe/wire.py` is the other end.

export type Numbers = Float32Array | Float64Array | Uint8Array | Uint16Array | Int32Array;

export interface NumberArray {
  data: Numbers;
  shape: number[];
}

const KINDS = {
  float32: Float32Array,
  float64: Float64Array,
  uint8: Uint8Array,
  uint16: Uint16Array,
  int32: Int32Array,
} as const;

export type Buffer = ArrayBuffer | ArrayBufferView;

export function unpack(tree: unknown, buffers: readonly Buffer[]): any {
  if (Array.isArray(tree)) return tree.map((item) => unpack(item, buffers));
  if (tree === null || typeof tree !== "object") return tree;
  const entries = tree as Record<string, unknown>;
  if (typeof entries.$array === "number") {
    const kind = KINDS[entries.dtype as keyof typeof KINDS];
    if (!kind) throw new Error(`no array of ${String(entries.dtype)}`);
    return { data: new kind(bytes(buffers[entries.$array])), shape: entries.shape } as NumberArray;
  }
  return Object.fromEntries(Object.entries(entries).map(([key, value]) => [key, unpack(value, buffers)]));
}

/** A copy that starts where every kind of number may start. */
function bytes(buffer: Buffer): ArrayBuffer {
  if (buffer instanceof ArrayBuffer) return buffer;
  return buffer.buffer.slice(buffer.byteOffset, buffer.byteOffset + buffer.byteLength) as ArrayBuffer;
}

/** The name under which an answer is kept in an exported file; Python writes the same. */
export function nameOf(path: readonly number[], what: string, args: unknown): string {
  return JSON.stringify([path, what, sorted(args)]);
}

function sorted(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(sorted);
  if (value === null || typeof value !== "object") return value;
  const entries = Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1));
  return Object.fromEntries(entries.map(([key, item]) => [key, sorted(item)]));
}
