// The demo's page: a player that says when it cannot play, and unfolded parts that stay unfolded while the page is
// drawn again. Seeking and enlarging are closeup.js.
(() => {
  "use strict";
  if (window.closeupDemoReady) return;
  window.closeupDemoReady = true;

  document.addEventListener(
    "error",
    (event) => {
      const video = event.target;
      if (video instanceof HTMLVideoElement) {
        const note = video.parentElement?.querySelector(".cud-unplayable");
        if (note) note.hidden = false;
      }
    },
    true,
  );

  // On a narrow screen what happens is below the controls: whoever asks is taken there.
  document.addEventListener("click", (event) => {
    const button = event.target instanceof Element && event.target.closest("#cud-ask, #cud-retry, #cud-further, .cud-example");
    if (!button || window.innerWidth >= 700) return;
    const still = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
    document.getElementById("cud-view")?.scrollIntoView({ block: "start", behavior: still ? "auto" : "smooth" });
  });

  const unfolded = new WeakSet();
  document.addEventListener("click", (event) => {
    const summary = event.target instanceof Element && event.target.closest(".cu summary");
    if (!summary) return;
    const details = summary.parentElement;
    if (details.open) unfolded.delete(details);
    else unfolded.add(details);
  });
  new MutationObserver((changes) => {
    for (const { target } of changes) if (unfolded.has(target) && !target.open) target.open = true;
  }).observe(document, { subtree: true, attributes: true, attributeFilter: ["open"] });
})();
