"use strict";
(() => {
  const parts = ["verdict", "content", "foot"];
  const raw = new Map(parts.map((id) => [id, document.getElementById(id).outerHTML]));
  const clock = { hour: "2-digit", minute: "2-digit" };

  // Beside each time of UTC, the one of this browser.
  function addLocalTimes() {
    for (const time of document.querySelectorAll("time[datetime]")) {
      const at = new Date(time.dateTime);
      time.title = at.toString();
      if (at.getTimezoneOffset() === 0 || time.querySelector(".local")) continue;
      const local = document.createElement("span");
      local.className = "local";
      local.textContent = ` (${at.toLocaleTimeString([], clock)} your time)`;
      time.append(local);
    }
  }

  // What has changed is replaced in its place: nothing scrolls, and nothing is replaced while somebody selects it.
  async function refresh() {
    const selection = document.getSelection();
    if (document.hidden || (selection && !selection.isCollapsed)) return;
    const stale = document.getElementById("stale");
    try {
      const response = await fetch(location.href, { cache: "no-store" });
      if (!response.ok) throw new Error(String(response.status));
      const page = new DOMParser().parseFromString(await response.text(), "text/html");
      for (const id of parts) {
        const part = page.getElementById(id);
        if (!part || raw.get(id) === part.outerHTML) continue;
        raw.set(id, part.outerHTML);
        document.getElementById(id).replaceWith(document.importNode(part, true));
      }
      document.title = page.title;
      document.querySelector("link[rel=icon]").href = page.querySelector("link[rel=icon]").href;
      stale.hidden = true;
      addLocalTimes();
    } catch {
      if (stale.hidden) stale.textContent = `clerk-sync does not respond. This page shows the state at ${new Date().toLocaleTimeString()}.`;
      stale.hidden = false;
    }
  }

  addLocalTimes();
  setInterval(refresh, 10_000);
  document.addEventListener("visibilitychange", refresh);
})();
