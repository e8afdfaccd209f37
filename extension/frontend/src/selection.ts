// The chosen token, layer and head, shared by all views of one page that were given the same one.

export interface Chosen {
  row: number;
  token: number | null;
  layer: number | null;
  head: number | null;
}

export interface Selection {
  readonly value: Chosen;
  /** Takes over what differs, and tells everyone who listens. Returns whether anything did. */
  set(part: Partial<Chosen>): boolean;
  on(listener: (value: Chosen, before: Chosen) => void, signal: AbortSignal): void;
}

export function makeSelection(start: Chosen): Selection {
  let value = { ...start };
  const listeners = new Set<(value: Chosen, before: Chosen) => void>();
  return {
    get value() {
      return value;
    },
    set(part) {
      const next = { ...value, ...part };
      const same = (Object.keys(next) as (keyof Chosen)[]).every((key) => next[key] === value[key]);
      if (same) return false;
      const before = value;
      value = next;
      for (const listener of [...listeners]) listener(value, before);
      return true;
    },
    on(listener, signal) {
      if (signal.aborted) return;
      listeners.add(listener);
      signal.addEventListener("abort", () => listeners.delete(listener));
    },
  };
}

// Every widget brings its own copy of this module, so what they share hangs on the page itself.
const KEY = Symbol.for("llama_loupe.selections");

export function sharedSelection(id: string, start: Chosen): Selection {
  const page = globalThis as unknown as Record<symbol, Map<string, Selection> | undefined>;
  const all = (page[KEY] ??= new Map());
  if (!all.has(id)) all.set(id, makeSelection(start));
  return all.get(id)!;
}
