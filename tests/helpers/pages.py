"""Opens pages about runs in a browser, and checks what they show and play."""

import json

from matplotlib import image

PLAY_ALL = """
const done = arguments[arguments.length - 1];
(async () => {
  const played = [];
  for (const audio of document.querySelectorAll("audio")) {
    audio.muted = true;
    await audio.play();
    const end = performance.now() + 5000;
    while (audio.currentTime < 0.1 && !audio.ended && performance.now() < end) await new Promise(f => setTimeout(f, 9));
    audio.pause();
    const moved = parseFloat(audio.closest(".clip").querySelector(".playhead").style.left);
    played.push({state: audio.readyState, time: audio.currentTime, length: audio.duration, moved: moved});
  }
  done(played);
})().catch(error => done(String(error)));
"""


def open_page(browser, path, theme: str, width: int):
    """Loads a page with the reader's colour scheme and width; returns the addresses that it asked for."""
    scheme = [{"name": "prefers-color-scheme", "value": theme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get_log("performance")
    browser.get(path.as_uri())
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requests = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    # The browser's own first page may still load.
    return [one["request"]["url"] for one in requests if one["documentURL"] == path.as_uri()]


def check_page(browser, path, num_clips: int, picture, num_sounds: int | None = None):
    """Checks pictures and sounds; nothing is asked of the network, nothing complained of. num_clips: with a picture"""
    num_sounds = num_clips if num_sounds is None else num_sounds
    num_images, backgrounds = num_clips + len(list(path.parent.glob("*.png"))), {}
    for theme in ("light", "dark"):
        for width in (1280, 390):
            asked = open_page(browser, path, theme, width)
            assert path.as_uri() in asked
            foreign = {url for url in asked if not url.startswith("data:")} - {path.as_uri()}
            assert not foreign, foreign
            widths = browser.execute_script("return [...document.images].map(image => image.naturalWidth)")
            assert len(widths) == num_images and min(widths) > 0
            assert browser.execute_script("return document.documentElement.scrollWidth") <= width
            backgrounds[theme] = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
            browser.get_screenshot_as_file(str(picture.with_name(f"{picture.name}_{theme}_{width}.png")))
            shown = image.imread(picture.with_name(f"{picture.name}_{theme}_{width}.png"))[..., :3]
            assert (shown.mean() > 0.5) == (theme == "light") and shown.std() > 0.03
    assert backgrounds["light"] != backgrounds["dark"]
    browser.find_element("tag name", "h1").click()  # no page may play before its reader has touched it
    browser.set_script_timeout(120)
    played = browser.execute_async_script(PLAY_ALL)
    assert isinstance(played, list), played
    assert len(played) == num_sounds
    assert all(clip["state"] >= 2 and clip["time"] >= min(0.1, 0.9 * clip["length"]) for clip in played), played
    assert all(0 < clip["moved"] <= 100 for clip in played), played
    assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
