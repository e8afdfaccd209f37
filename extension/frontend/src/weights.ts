import type { Draw } from "./context";

export const weights: Draw = () => {};
