// The way to Python and back. Questions are numbered; of two that fill the same slot the later
// counts, so that a fast hand never waits for pictures that nobody looks at any more.

import { type Buffer, nameOf, unpack } from "./wire";

/** What anywidget gives, and `host.ts` where there is no kernel. */
export interface Model {
  get(name: string): any;
  on(event: string, listener: (...args: any[]) => void): void;
  off(event: string, listener: (...args: any[]) => void): void;
  send(content: unknown): void;
}

export interface Link {
  /** Asks the view at `path`; fails with a sentence for the reader. Superseded questions never settle. */
  ask(path: readonly number[], what: string, args: unknown, slot?: string): Promise<any>;
  tell(message: Record<string, unknown>): void;
  /** False in an exported file, and when the kernel is gone. */
  readonly live: boolean;
}

interface Waiting {
  slot: string;
  resolve(value: any): void;
  reject(reason: Error): void;
}

export interface Said {
  kind: string;
  [name: string]: any;
}

const GONE = "the kernel that drew this is gone; run the cell again to look closer";

export function connect(model: Model, hear: (message: Said) => void, signal: AbortSignal): Link {
  const waiting = new Map<number, Waiting>();
  let last = 0;
  let live = true;

  const receive = (message: Said, buffers: readonly Buffer[] = []) => {
    if (message.kind !== "answer") return hear(message);
    const question = waiting.get(message.id);
    waiting.delete(message.id);
    if (!question) return;
    if (message.error) question.reject(new Error(message.error));
    else question.resolve(unpack(message.body, buffers));
  };
  const closed = () => {
    live = false;
    for (const question of waiting.values()) question.reject(new Error(GONE));
    waiting.clear();
    hear({ kind: "gone" });
  };
  const events: [string, (...args: any[]) => void][] = [
    ["msg:custom", receive],
    ["comm_live_update", closed],
    ["destroy", closed],
  ];
  for (const [event, listener] of events) model.on(event, listener);
  signal.addEventListener("abort", () => {
    for (const [event, listener] of events) model.off(event, listener);
  });
  return {
    get live() {
      return live;
    },
    ask(path, what, args, slot = what) {
      if (!live) return Promise.reject(new Error(GONE));
      const id = ++last;
      slot = JSON.stringify([path, slot]);
      for (const [old, question] of waiting) if (question.slot === slot) waiting.delete(old);
      return new Promise((resolve, reject) => {
        waiting.set(id, { slot, resolve, reject });
        model.send({ kind: "ask", id, path, what, args, slot });
      });
    },
    tell(message) {
      if (live) model.send(message);
    },
  };
}

/** In a file that stands alone: the answers that were written into it. */
export function recorded(answers: Record<string, unknown>, buffers: readonly Buffer[]): Link {
  return {
    live: false,
    ask(path, what, args) {
      const name = nameOf(path, what, args);
      if (name in answers) return Promise.resolve(unpack(answers[name], buffers));
      return Promise.reject(new Error("this file does not hold it; open it in a notebook to look closer"));
    },
    tell() {},
  };
}
