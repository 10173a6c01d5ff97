// Light or dark: as the system is set, until it is chosen here.
const THEME = "bottleneck-opt-theme";

function makeTheme(control) {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const root = document.documentElement;
  const remembered = remember();
  if (remembered === "light" || remembered === "dark") root.dataset.theme = remembered;
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const name = () => {
    control.textContent = isDark() ? "Light" : "Dark";
  };

  function toggle() {
    root.dataset.theme = isDark() ? "light" : "dark";
    remember(root.dataset.theme);
    name();
  }

  control.addEventListener("click", toggle);
  system.addEventListener("change", name);
  name();
  return toggle;
}

// Pages opened from a file may have no storage.
function remember(value) {
  try {
    if (value) localStorage.setItem(THEME, value);
    return localStorage.getItem(THEME);
  } catch {
    return null;
  }
}
