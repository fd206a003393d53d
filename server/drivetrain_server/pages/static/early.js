// Before the first paint, so that a page of a chosen theme never flashes in the other one.
try {
  const theme = JSON.parse(localStorage.getItem("drivetrain.theme"));
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // Nothing is kept here: the system's theme it is.
}
