import type { Draw } from "./context";

export const result: Draw = () => {};
