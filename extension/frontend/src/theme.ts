// The notebook's colours, and when they change.

export interface Theme {
  dark: boolean;
  ground: string;
  ink: string;
  faint: string;
  line: string;
  accent: string;
  masked: string;
  font: string;
}

/** What a canvas needs to know; the element must be in the page. */
export function themeOf(element: Element): Theme {
  const style = getComputedStyle(element.closest(".loupe") ?? element); // only the root has a ground
  const probe = (name: string) => style.getPropertyValue(name).trim();
  return {
    dark: luminance(style.backgroundColor) < 0.5,
    ground: style.backgroundColor,
    ink: style.color,
    faint: resolved(element, probe("--loupe-faint")) || style.color,
    line: resolved(element, probe("--loupe-line")) || style.color,
    accent: resolved(element, probe("--loupe-accent")) || style.color,
    masked: resolved(element, probe("--loupe-masked")) || "transparent",
    font: `${style.fontSize} ${style.fontFamily}`,
  };
}

/** A colour that may be a mixture, as a canvas understands it. */
function resolved(element: Element, colour: string): string {
  if (!colour) return "";
  const probe = document.createElement("span");
  probe.style.color = colour;
  element.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

export function luminance(colour: string): number {
  const parts = colour.match(/[\d.]+/g)?.map(Number);
  if (!parts || parts.length < 3 || parts[3] === 0) {
    return matchMedia("(prefers-color-scheme: dark)").matches ? 0 : 1;
  }
  const whole = colour.startsWith("color(") ? 1 : 255;
  return (0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]) / whole;
}

/** Calls `change` when the notebook, the editor or the system changes between light and dark. */
export function onTheme(change: () => void, signal: AbortSignal): void {
  let frame = 0;
  const later = () => {
    cancelAnimationFrame(frame);
    frame = requestAnimationFrame(change);
  };
  const observer = new MutationObserver(later);
  const names = ["class", "data-jp-theme-light", "data-jp-theme-name", "data-theme", "data-vscode-theme-kind", "theme"];
  for (const element of [document.body, document.documentElement])
    observer.observe(element, { attributes: true, attributeFilter: names });
  const dark = matchMedia("(prefers-color-scheme: dark)");
  dark.addEventListener("change", later);
  signal.addEventListener("abort", () => {
    cancelAnimationFrame(frame);
    observer.disconnect();
    dark.removeEventListener("change", later);
  });
}
