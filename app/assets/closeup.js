// Clicks and keys of every scene on a page: enlarge a frame, move along a strip, seek. Listeners sit on the document, so
// scenes may come and go. Everything is read from data attributes and written as text or as an image's address.
(() => {
  "use strict";
  if (window.closeupReady) return;
  window.closeupReady = true;

  const make = (tag, name, text) => {
    const element = document.createElement(tag);
    if (name) element.className = name;
    if (text) element.textContent = text;
    return element;
  };
  const framesOf = (frame) => [...frame.closest("[data-cu-strip]").querySelectorAll("[data-cu-open]")];

  // ---- a frame, enlarged ----
  let dialog, title, pair, before, after, current;

  const build = () => {
    dialog = make("dialog", "cu cu-dialog");
    dialog.setAttribute("aria-labelledby", "cu-dialog-title");
    const bar = make("div", "cu-dialog-bar");
    title = make("p", "cu-dialog-title");
    title.id = "cu-dialog-title";
    before = make("button", "", "←");
    before.setAttribute("aria-label", "Earlier frame");
    after = make("button", "", "→");
    after.setAttribute("aria-label", "Later frame");
    const close = make("button", "", "Close");
    for (const button of [before, after, close]) button.type = "button";
    before.addEventListener("click", () => step(-1));
    after.addEventListener("click", () => step(1));
    close.addEventListener("click", () => dialog.close());
    dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
    dialog.addEventListener("close", () => current?.isConnected && focus(current));
    pair = make("div", "cu-pair");
    pair.setAttribute("aria-live", "polite");
    bar.append(title, before, after, close);
    dialog.append(bar, pair);
  };

  const picture = (source, caption, alt, coarse) => {
    const figure = make("figure");
    const image = make("img", coarse ? "cu-coarse" : "");
    image.src = source;
    image.alt = alt;
    figure.append(make("figcaption", "", caption), image);
    return figure;
  };

  const show = (frame) => {
    const image = frame.querySelector("img");
    const { cuClock: clock, cuSize: size, cuFilm: film } = frame.dataset;
    current = frame;
    title.textContent = `Frame at ${clock}`;
    const seen = picture(image.src, `What the agent saw: ${size} pixels`, image.alt, image.naturalWidth <= 160);
    const whole = /^(data:image\/|closeup\/picture\/)/.test(film ?? "") && picture(film, "The film itself", `The film at ${clock}`, false);
    pair.replaceChildren(...(whole ? [seen, whole] : [seen]));
    const all = framesOf(frame);
    before.disabled = all[0] === frame;
    after.disabled = all.at(-1) === frame;
  };

  const step = (by) => {
    const all = framesOf(current);
    const next = all[all.indexOf(current) + by];
    if (next) show(next);
  };

  const open = (frame) => {
    if (!dialog) build();
    const home = frame.closest(".gradio-container") ?? document.body;
    if (dialog.parentNode !== home) home.append(dialog);
    show(frame);
    if (!dialog.open) dialog.showModal();
  };

  // ---- along a strip: one frame of it is in the tab order ----
  const focus = (frame) => {
    for (const other of framesOf(frame)) other.tabIndex = other === frame ? 0 : -1;
    frame.focus();
    frame.scrollIntoView({ block: "nearest", inline: "nearest" });
  };

  // ---- seeking: the page's player where there is one, else the frame nearest to the second ----
  const seek = (element) => {
    const seconds = Number(element.dataset.seek);
    if (!Number.isFinite(seconds)) return;
    const player = document.querySelector("[data-cu-player] video, video[data-cu-player], .cu-player video");
    if (player) {
      player.currentTime = seconds;
      player.scrollIntoView({ block: "nearest" });
      player.play?.()?.catch?.(() => {});
      return;
    }
    const scene = element.closest(".cu-scene") ?? document;
    const frames = [...scene.querySelectorAll("[data-cu-open]")];
    if (!frames.length) return;
    const close = frames.filter((frame) => frame.closest(".cu-strip-close"));
    const distance = (frame) => Math.abs(Number(frame.dataset.cuTime) - seconds);
    const nearest = (some) => some.reduce((best, frame) => (distance(frame) < distance(best) ? frame : best));
    let found = nearest(frames);
    if (close.length && distance(nearest(close)) <= distance(found) + 1) found = nearest(close);
    found.scrollIntoView({ block: "center", inline: "center" });
    focus(found);
    found.classList.add("cu-flash");
    setTimeout(() => found.classList.remove("cu-flash"), 1700);
  };

  document.addEventListener("click", (event) => {
    const target = event.target instanceof Element ? event.target : null;
    const frame = target?.closest(".cu [data-cu-open]");
    if (frame) return open(frame);
    const button = target?.closest(".cu [data-seek]");
    if (button) seek(button);
  });

  document.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (dialog?.open) {
      if (by) { event.preventDefault(); step(by); }
      return;
    }
    const frame = event.target instanceof Element && event.target.closest(".cu [data-cu-open]");
    if (!frame) return;
    const all = framesOf(frame);
    const next = by ? all[all.indexOf(frame) + by] : { Home: all[0], End: all.at(-1) }[event.key];
    if (by || event.key === "Home" || event.key === "End") event.preventDefault();
    if (next) focus(next);
  });
})();
