// Reads the page anew every 3 seconds and keeps the reader's place; rests while nobody looks or text is selected.
// What is no page of ours (a refusal, a service that is starting) changes nothing but the clock, until one comes again.
setInterval(async () => {
  const main = document.querySelector("main");
  if (document.hidden || "still" in main.dataset || String(getSelection())) return;
  const now = document.querySelector("#now");
  try {
    const reply = await fetch(location.href);
    if (!reply.ok) throw new Error(`status ${reply.status}`);
    const page = new DOMParser().parseFromString(await reply.text(), "text/html");
    const [newMain, newNow] = [page.querySelector("main"), page.querySelector("#now")];
    if (!newMain || !newNow) throw new Error("not a page of the dashboard");
    main.replaceWith(newMain);
    now.replaceWith(newNow);
  } catch {
    now.textContent = "the service does not answer";
    now.className = "trouble";
  }
}, 3000);
