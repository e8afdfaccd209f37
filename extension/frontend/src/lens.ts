import type { Draw } from "./context";

export const lens: Draw = () => {};
