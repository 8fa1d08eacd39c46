//! The report's pages in a real headless Chromium: nothing in the console, the right marks, no text that leaves the page on a desk or
//! on a phone, contrast in light and dark, headings in order. Skipped, with a message, where there is no Chromium and no way to one.
//!
//! Chromium is driven through its DevTools pipe: JSON messages, each ended by a zero byte, on its file descriptors 3 and 4.

use nightmarket::report;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

struct Browser {
    process: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    last_id: u64,
    session: Option<String>,
    events: VecDeque<Value>,
    _profile: tempfile::TempDir,
}

impl Browser {
    /// None where there is no Chromium.
    fn start() -> Option<Self> {
        let profile = tempfile::tempdir().expect("a temporary folder");
        if Command::new("sh").args(["scripts/chromium.sh", "--version"]).stdout(Stdio::null()).status().expect("sh runs").code() == Some(3)
        {
            eprintln!("browser: 1 test skipped: no chromium here");
            return None;
        }
        let flags = "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --hide-scrollbars --remote-debugging-pipe";
        let profile_flag = format!("--user-data-dir={}", profile.path().display());
        let mut process = Command::new("sh")
            .args([
                "-c",
                &format!("exec sh scripts/chromium.sh {flags} \"$0\" about:blank 3<&0 4>&1 0</dev/null 1>&2 2>/dev/null"),
                &profile_flag,
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("sh runs");
        let (to, from) = (process.stdin.take().expect("piped"), BufReader::new(process.stdout.take().expect("piped")));
        let mut browser = Self { process, to, from, last_id: 0, session: None, events: VecDeque::new(), _profile: profile };
        let target = browser.call("Target.createTarget", json!({"url": "about:blank"}));
        let attached = browser.call("Target.attachToTarget", json!({"targetId": target["targetId"], "flatten": true}));
        browser.session = attached["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Runtime", "Log", "Network"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        Some(browser)
    }

    fn call(&mut self, method: &str, parameters: Value) -> Value {
        self.last_id += 1;
        let mut message = json!({"id": self.last_id, "method": method, "params": parameters});
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        self.to.write_all(format!("{message}\0").as_bytes()).expect("the browser listens");
        loop {
            let message = self.read();
            if message["id"] == self.last_id {
                assert!(message["error"].is_null(), "{method}: {}", message["error"]);
                return message["result"].clone();
            }
            self.events.push_back(message);
        }
    }

    fn read(&mut self) -> Value {
        let mut bytes = Vec::new();
        self.from.read_until(0, &mut bytes).expect("the browser answers");
        bytes.pop();
        serde_json::from_slice(&bytes).unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&bytes)))
    }

    /// Opens a file at a width of the window and waits until it is there; gives what was complained about or fetched.
    fn open(&mut self, page: &Path, width: u32) -> Vec<String> {
        self.call("Emulation.setDeviceMetricsOverride", json!({"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": false}));
        self.events.clear();
        let url = format!("file://{}", page.display());
        self.call("Page.navigate", json!({"url": url}));
        while !self.events.iter().any(|event| event["method"] == "Page.loadEventFired") {
            let event = self.read();
            self.events.push_back(event);
        }
        let complaint = |event: &Value| match event["method"].as_str()? {
            "Runtime.consoleAPICalled" | "Runtime.exceptionThrown" | "Log.entryAdded" => Some(event["params"].to_string()),
            "Network.requestWillBeSent" if event["params"]["request"]["url"] != url => Some(event["params"]["request"]["url"].to_string()),
            _ => None,
        };
        self.events.iter().filter_map(complaint).collect()
    }

    fn ask(&mut self, script: &str) -> Value {
        let answer = self.call("Runtime.evaluate", json!({"expression": script, "returnByValue": true}));
        assert!(answer["exceptionDetails"].is_null(), "{}", answer["exceptionDetails"]);
        answer["result"]["value"].clone()
    }

    fn count(&mut self, selector: &str) -> u64 {
        self.ask(&format!("document.querySelectorAll({}).length", json!(selector))).as_u64().expect("a count")
    }

    fn scheme(&mut self, scheme: &str) {
        self.call("Emulation.setEmulatedMedia", json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]}));
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What reaches beyond the window and cannot be scrolled to in a frame of its own.
const OVERFLOWING: &str = r"(() => {
    const width = document.documentElement.clientWidth;
    const found = [];
    if (document.documentElement.scrollWidth > width) found.push('the page is ' + document.documentElement.scrollWidth + ' wide');
    for (const element of document.querySelectorAll('main *')) {
        if (element.closest('.wide') || element.closest('svg') || element.closest('details:not([open])')) continue;
        const box = element.getBoundingClientRect();
        if (box.width > 0 && (box.right > width + 1 || box.left < -1)) found.push(element.tagName + '.' + element.className + ': ' + element.textContent.slice(0, 60));
    }
    return found.slice(0, 10);
})()";

/// Text whose contrast with what lies behind it is below 4.5 (WCAG 2.2, 1.4.3), with the ratio.
const PALE_TEXT: &str = r"(() => {
    const parse = colour => { const m = colour.match(/[\d.]+/g).map(Number); return {rgb: m.slice(0, 3), a: m.length > 3 ? m[3] : 1}; };
    const light = rgb => { const [r, g, b] = rgb.map(v => { v /= 255; return v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; }); return .2126 * r + .7152 * g + .0722 * b; };
    const behind = element => { for (let e = element; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor); if (c.a > 0) return c.rgb; } return [255, 255, 255]; };
    const found = new Map();
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    for (let node = walker.nextNode(); node; node = walker.nextNode()) {
        const element = node.parentElement;
        if (!node.textContent.trim() || element.closest('title, desc, style')) continue;
        const style = getComputedStyle(element);
        const inSvg = element.closest('svg');
        const ink = parse(inSvg ? style.fill : style.color).rgb;
        const box = inSvg && element.closest('g') ? parse(getComputedStyle(element.closest('g').querySelector('rect')).fill).rgb : behind(element);
        const [hi, lo] = [light(ink), light(box)].sort((a, b) => b - a);
        const ratio = (hi + .05) / (lo + .05);
        if (ratio < 4.5) found.set(element.tagName + '.' + element.className + ' ' + style.color + ' ' + ratio.toFixed(2), node.textContent.trim().slice(0, 40));
    }
    return [...found].map(([where, text]) => where + ': ' + text).slice(0, 10);
})()";

/// What a person who cannot see the page would miss.
const UNSPOKEN: &str = r"(() => {
    const found = [];
    let last = 0;
    for (const head of document.querySelectorAll('h1, h2, h3, h4, h5, h6')) {
        const level = Number(head.tagName[1]);
        if (level > last + 1) found.push('h' + level + ' after h' + last + ': ' + head.textContent);
        last = level;
    }
    if (document.querySelectorAll('h1').length !== 1) found.push('not one h1');
    for (const table of document.querySelectorAll('table')) {
        const name = table.caption ? table.caption.textContent : 'a table without caption';
        if (!table.caption) found.push(name);
        for (const head of table.querySelectorAll('th')) if (!head.scope) found.push('a head without scope in ' + name);
        if (!table.tHead) found.push('no head in ' + name);
    }
    for (const svg of document.querySelectorAll('svg')) {
        if (svg.getAttribute('aria-hidden') === 'true') continue;
        const spoken = (svg.getAttribute('aria-labelledby') || '').split(' ').map(id => document.getElementById(id)).filter(Boolean);
        if (svg.getAttribute('role') !== 'img' || spoken.length !== 2 || spoken.some(e => !e.textContent.trim())) found.push('a drawing that says nothing: ' + svg.outerHTML.slice(0, 90));
    }
    const ids = [...document.querySelectorAll('[id]')].map(e => e.id);
    ids.filter((id, at) => ids.indexOf(id) !== at).forEach(id => found.push('two elements are called ' + id));
    for (const link of document.querySelectorAll('a[href^=\'#\']')) if (!document.getElementById(link.getAttribute('href').slice(1))) found.push('nothing at ' + link.getAttribute('href'));
    return found.slice(0, 10);
})()";

fn sample() -> Value {
    serde_json::from_str(&std::fs::read_to_string("testdata/report/sample.json").expect("the sample night")).expect("JSON")
}

/// Digests of some nights up to the sample's.
fn nights(facts: &Value) -> Vec<Value> {
    facts["history"].as_array().expect("a history").clone()
}

fn pages(folder: &Path) -> Vec<PathBuf> {
    let facts = sample();
    let odd = json!({"skipped": ["evaluate: no earlier table"], "run": {"job": "鞋子".repeat(40), "date": "2026-03-18"}});
    let pages = [
        ("night.html", report::render(&facts)),
        ("empty.html", report::render(&odd)),
        ("trend.html", report::render_trend(&nights(&facts))),
        ("index.html", report::render_index(&nights(&facts))),
    ];
    let write = |(name, page): (&str, nightmarket::error::Result<String>)| {
        std::fs::write(folder.join(name), page.expect("renders")).expect("written");
        folder.join(name)
    };
    pages.into_iter().map(write).collect()
}

#[test]
fn the_pages_are_quiet_fit_and_can_be_read_by_everybody() {
    let Some(mut browser) = Browser::start() else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let pages = pages(folder.path());
    for page in &pages {
        for width in [1280, 390] {
            let complaints = browser.open(page, width);
            assert!(complaints.is_empty(), "{} at {width}: {complaints:?}", page.display());
            assert_eq!(browser.ask(OVERFLOWING), json!([]), "{} at {width}", page.display());
            // Folded parts must fit as well.
            browser.ask("document.querySelectorAll('details').forEach(part => part.open = true)");
            assert_eq!(browser.ask(OVERFLOWING), json!([]), "{} at {width}, unfolded", page.display());
        }
        assert_eq!(browser.ask(UNSPOKEN), json!([]), "{}", page.display());
        for scheme in ["light", "dark"] {
            browser.scheme(scheme);
            assert_eq!(browser.ask(PALE_TEXT), json!([]), "{} in {scheme}", page.display());
        }
    }

    // The drawings of the night have a mark for each fact.
    let facts = sample();
    browser.open(&pages[0], 1280);
    let rows = |path: &str| facts.pointer(path).and_then(Value::as_array).map_or(0, Vec::len) as u64;
    let nights = rows("/history");
    for (selector, marks) in [
        ("svg[aria-labelledby^='chart-reliability'] circle", rows("/gate/reliability")),
        ("svg[aria-labelledby^='chart-roc'] polyline", rows("/diagnosis/models")),
        ("svg[aria-labelledby^='chart-pr'] polyline", rows("/diagnosis/models")),
        ("svg[aria-labelledby^='chart-gain'] polyline", rows("/diagnosis/models")),
        ("svg[aria-labelledby^='chart-calibration'] circle", nights),
        ("svg[aria-labelledby^='chart-loss-response'] circle", 2 * rows("/model/response/epochs")),
        ("svg[aria-labelledby^='chart-lineage'] rect", rows("/lineage/tables")),
        ("#experiments .mark circle", rows("/evaluate/lift") + rows("/evaluate/incremental/metrics") + rows("/off_policy/estimates")),
        ("svg[aria-labelledby^='chart-pacing'] polyline", 2),
        ("svg[aria-labelledby^='chart-looks'] circle", 2 * rows("/evaluate/frequency/looks")),
        ("svg[aria-labelledby^='chart-positions'] circle", rows("/evaluate/positions/positions")),
        ("svg[aria-labelledby^='chart-table-reliability'] circle", rows("/evaluate/predictions/reliability")),
        (".changes li", 5),
        (".badges li", 7),
    ] {
        assert!(marks > 0, "the sample has none for {selector}");
        assert_eq!(browser.count(selector), marks, "{selector}");
    }
    assert_eq!(browser.count("script, link, iframe, img"), 0);
}

/// A4 from the browser's own printer: nothing is cut off, so a page is as wide as its paper.
#[test]
fn a_night_prints_on_a4() {
    let Some(mut browser) = Browser::start() else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let night = pages(folder.path()).remove(0);
    browser.open(&night, 1280);
    // 794 CSS pixels are 210 mm; less the margins of the page's own style sheet.
    browser.call("Emulation.setEmulatedMedia", json!({"media": "print"}));
    browser.call("Emulation.setDeviceMetricsOverride", json!({"width": 688, "height": 1017, "deviceScaleFactor": 1, "mobile": false}));
    assert_eq!(browser.ask("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), json!(true));
    assert_eq!(browser.ask("getComputedStyle(document.querySelector('nav')).display"), json!("none"));
    let printed = browser.call("Page.printToPDF", json!({"preferCSSPageSize": true, "printBackground": false}));
    let length = printed["data"].as_str().map_or(0, str::len);
    assert!(length > 20_000, "{length} characters of base64");
}
