import type { Draw } from "./context";

export const compare: Draw = () => {};
