import { expect, test } from "vitest";
import { type Model, connect, recorded } from "../src/link";
import { makeSelection, sharedSelection } from "../src/selection";
import { nameOf, unpack } from "../src/wire";

test("arrays come out of their buffers, wherever these begin", () => {
  const holder = new Uint8Array(13);
  new DataView(holder.buffer).setFloat32(5, 1.5, true);
  const found = unpack({ a: [{ $array: 0, dtype: "float32", shape: [1] }], b: null }, [new DataView(holder.buffer, 5, 4)]);
  expect([...found.a[0].data]).toEqual([1.5]);
  expect(found.b).toBeNull();
});

test("an unknown kind of number is an error that names it", () => {
  expect(() => unpack({ $array: 0, dtype: "complex64", shape: [] }, [new ArrayBuffer(8)])).toThrow("complex64");
});

test("a question has the name that Python gives it", () => {
  expect(nameOf([0], "tile", { b: 1, a: [1, 2] })).toBe('[[0],"tile",{"a":[1,2],"b":1}]');
});

function fake() {
  const listeners = new Map<string, ((...args: any[]) => void)[]>();
  const sent: any[] = [];
  const model: Model = {
    get: () => undefined,
    on: (event, listener) => void listeners.set(event, [...(listeners.get(event) ?? []), listener]),
    off: (event) => void listeners.delete(event),
    send: (content) => void sent.push(content),
  };
  const emit = (event: string, ...args: any[]) => listeners.get(event)?.forEach((listener) => listener(...args));
  return { model, sent, emit, listeners };
}

test("answers find their questions in any order, and an old question of a slot is dropped", async () => {
  const { model, sent, emit } = fake();
  const link = connect(model, () => {}, new AbortController().signal);
  let old = false;
  void link.ask([], "tile", { at: 1 }).then(() => (old = true));
  const newer = link.ask([], "tile", { at: 2 });
  const other = link.ask([1], "tile", { at: 3 });
  emit("msg:custom", { kind: "answer", id: sent[2].id, body: { is: 3 } });
  emit("msg:custom", { kind: "answer", id: sent[1].id, body: { is: 2 } });
  emit("msg:custom", { kind: "answer", id: sent[0].id, body: { is: 1 } });
  expect([await newer, await other, old]).toEqual([{ is: 2 }, { is: 3 }, false]);
});

test("what Python refuses, and a kernel that goes, are sentences", async () => {
  const { model, sent, emit } = fake();
  const heard: any[] = [];
  const link = connect(model, (said) => heard.push(said), new AbortController().signal);
  const refused = link.ask([], "tile", {});
  emit("msg:custom", { kind: "answer", id: sent[0].id, error: "ViewError: layer is 9" });
  await expect(refused).rejects.toThrow("layer is 9");
  const lost = link.ask([], "tile", {});
  emit("comm_live_update");
  await expect(lost).rejects.toThrow("kernel");
  await expect(link.ask([], "tile", {})).rejects.toThrow("kernel");
  expect([link.live, heard]).toEqual([false, [{ kind: "gone" }]]);
});

test("a page that is closed listens no more", () => {
  const { model, listeners } = fake();
  const ended = new AbortController();
  connect(model, () => {}, ended.signal);
  ended.abort();
  expect(listeners.size).toBe(0);
});

test("a file answers what was written into it, and says what was not", async () => {
  const link = recorded({ '[[0],"tile",{"a":1}]': { is: 1 } }, []);
  expect(await link.ask([0], "tile", { a: 1 })).toEqual({ is: 1 });
  await expect(link.ask([0], "tile", { a: 2 })).rejects.toThrow("notebook");
});

test("a selection tells what changed, and only what changed", () => {
  const start = { row: 0, token: null, layer: 1, head: null };
  const selection = makeSelection(start);
  const ended = new AbortController();
  const seen: any[] = [];
  selection.on((value, before) => seen.push([value.layer, before.layer]), ended.signal);
  expect(selection.set({ layer: 1 })).toBe(false);
  expect(selection.set({ layer: 2 })).toBe(true);
  ended.abort();
  selection.set({ layer: 3 });
  expect(seen).toEqual([[2, 1]]);
  expect(sharedSelection("a", start)).toBe(sharedSelection("a", start));
  expect(sharedSelection("a", start)).not.toBe(sharedSelection("b", start));
});
