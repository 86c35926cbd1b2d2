// Reads the page anew every 3 seconds and keeps the reader's place; rests while nobody looks or text is selected.
setInterval(async () => {
  const main = document.querySelector("main");
  if (document.hidden || "still" in main.dataset || String(getSelection())) return;
  const now = document.querySelector("#now");
  try {
    const reply = await fetch(location.href);
    const page = new DOMParser().parseFromString(await reply.text(), "text/html");
    main.replaceWith(page.querySelector("main"));
    now.replaceWith(page.querySelector("#now"));
  } catch {
    now.textContent = "the service does not answer";
    now.className = "trouble";
  }
}, 3000);
