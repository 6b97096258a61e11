// The demo's page: a player that says when it cannot play, example cards, unfolded parts that stay unfolded while the
// page is drawn again, and a word when the server is gone. Seeking and enlarging are closeup.js.
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

  // A card does what its example's button does.
  document.addEventListener("click", (event) => {
    const card = event.target instanceof Element && event.target.closest("[data-cud-example]");
    if (card) document.querySelectorAll(".cud-example")[Number(card.dataset.cudExample)]?.click();
  });

  // On a narrow screen what happens is below the controls: whoever asks is taken there.
  document.addEventListener("click", (event) => {
    const button = event.target instanceof Element && event.target.closest("#cud-ask, #cud-retry, #cud-further, .cud-example");
    if (!button || window.innerWidth >= 700) return;
    const still = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
    document.getElementById("cud-view")?.scrollIntoView({ block: "start", behavior: still ? "auto" : "smooth" });
  });

  // A server that ended answers nothing any more: say so where the question stands still.
  const GONE = "The demo's server is gone, so nothing more will come. Start it again, then load this page again.";
  let misses = 0;
  const gone = (is) => {
    const note = document.getElementById("cud-gone");
    document.body.classList.toggle("cud-gone", is);
    if (!is) return note?.remove();
    if (note) return;
    const box = document.createElement("div");
    box.id = "cud-gone";
    box.className = "cu";
    const text = document.createElement("p");
    text.className = "cud-alert";
    text.setAttribute("role", "alert");
    text.textContent = GONE;
    box.append(text);
    document.getElementById("cud-view")?.before(box);
    for (const scene of document.querySelectorAll('#cud-view .cu-scene[data-cu-status="running"], #cud-view .cu-scene[data-cu-status="waiting"]')) {
      scene.dataset.cuStatus = "stopped";
      const status = scene.querySelector(".cu-status");
      if (status) {
        status.className = "cu-status cu-status-stopped";
        status.textContent = "connection lost";
      }
    }
  };
  setInterval(async () => {
    try {
      await fetch("closeup/alive", { cache: "no-store", signal: AbortSignal.timeout(8000) });
      misses = 0;
    } catch {
      misses += 1;
    }
    if (misses !== 1) gone(misses > 1);
  }, 2500);

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
