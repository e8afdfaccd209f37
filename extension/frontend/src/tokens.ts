import type { Draw } from "./context";

export const tokens: Draw = () => {};
