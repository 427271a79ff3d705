import { expect, setDefaultTimeout, test } from "bun:test";
import { closeSync, openSync, readFileSync } from "node:fs";
import net from "node:net";
import { join } from "node:path";
import { failureReasons, refusalCodes, ways } from "../../protocol.ts";
import { linuxTest, missing, testNeeding } from "../needing-fixture.ts";
import { Histogram, Metrics, quantile, renderPrometheus } from "../../native/introducer/metrics.ts";
import { MetricsServer } from "../../native/introducer/metrics-server.ts";
import { until } from "../native-fixture.ts";
import { freePort } from "../sockets-fixture.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

const relayUses = [{ name: "alice", fingerprint: "ab".repeat(32), bytes: 1536 }];
const limits = { connections: 20_000, connectionsPerAddress: 256, room: 256, relays: 256, relayTotal: 1e6 };
const gauges = {
  ...{ participants: 3, rooms: 2, connections: 5, waiting: 1, relays: 1, relayedBytes: 1536 },
  ...{ relayUses, limits },
};

function busy(): Metrics {
  const metrics = new Metrics();
  metrics.joined();
  metrics.refused("limit");
  metrics.refused("limit");
  metrics.turnedAway();
  metrics.introduced("linked", "direct", 80);
  metrics.introduced("linked", "direct", 180);
  metrics.introduced("peer-left", "none", 30);
  metrics.ticked(3);
  metrics.ticked(-1); // early, as far as the clock tells
  return metrics;
}

const name = "[a-zA-Z_:][a-zA-Z0-9_:]*";
const label = `[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\\\\n]|\\\\[\\\\"n])*"`;
const samplePattern = new RegExp(
  `^(${name})(\\{${label}(?:,${label})*\\})? (\\+Inf|-?[0-9.]+(?:e[+-]?[0-9]+)?)$`,
);

/** One family: HELP, TYPE, and samples that are all its own. */
function parseFamily(lines: string[]): [string, Map<string, number>] {
  const [, named, help] = new RegExp(`^# HELP (${name}) (\\S.*)$`).exec(lines[0] ?? "") ?? [];
  const [, typed, type = ""] =
    new RegExp(`^# TYPE (${name}) (gauge|counter|histogram)$`).exec(lines[1] ?? "") ?? [];
  if (!named || !help || typed !== named)
    throw new Error(`not HELP and TYPE: ${lines.slice(0, 2).join("; ")}`);
  if ((type === "counter") !== named.endsWith("_total")) throw new Error(`a ${type} called ${named}`);
  const samples = new Map<string, number>();
  for (const line of lines.slice(2)) {
    const [, sample = "", labels = "", value = ""] = samplePattern.exec(line) ?? [];
    const suffix = sample.slice(named.length);
    const suffixes = type === "histogram" ? ["_bucket", "_sum", "_count"] : [""];
    if (!sample.startsWith(named) || !suffixes.includes(suffix)) throw new Error(`not of ${named}: ${line}`);
    if (samples.has(sample + labels)) throw new Error(`again: ${line}`);
    samples.set(sample + labels, Number(value.replace("+Inf", "Infinity")));
  }
  if (type === "histogram") checkHistogram(named, samples);
  return [named, samples];
}

/** Bounds that grow up to +Inf, of counts that don't shrink; the last is the count of all. */
function checkHistogram(named: string, samples: ReadonlyMap<string, number>): void {
  const buckets = [...samples].filter(([sample]) => sample.startsWith(`${named}_bucket`));
  const bounds = buckets.map(([sample]) =>
    Number(/\{le="([^"]+)"\}$/.exec(sample)?.[1]?.replace("+Inf", "Infinity")),
  );
  const counts = buckets.map(([, value]) => value);
  const grows = (values: number[]) => values.every((value, at) => at === 0 || value >= values[at - 1]!);
  if (!grows(bounds) || new Set(bounds).size < bounds.length || bounds.at(-1) !== Infinity)
    throw new Error(`bounds of ${named}: ${bounds.join(" ")}`);
  if (!grows(counts) || counts.at(-1) !== samples.get(`${named}_count`) || !samples.has(`${named}_sum`))
    throw new Error(`counts of ${named}: ${counts.join(" ")}`);
}

/** The page as Prometheus takes it: name and labels to value, or an error in words. */
function parsePage(page: string): Map<string, number> {
  if (!page.endsWith("\n")) throw new Error("the last line has no end");
  const families = page
    .slice(0, -1)
    .split(/\n(?=# HELP )/)
    .map((text) => parseFamily(text.split("\n")));
  if (new Set(families.map(([named]) => named)).size < families.length)
    throw new Error("a family comes twice");
  return new Map(families.flatMap(([, samples]) => [...samples]));
}

test("the page is one that Prometheus reads, in seconds and bytes", () => {
  const values = parsePage(renderPrometheus(busy().read(gauges), '1\\2"3\n'));
  expect(Object.fromEntries(values)).toMatchObject({
    'introducer_build_info{version="1\\\\2\\"3\\n"}': 1,
    introducer_participants: 3,
    introducer_relayed_bytes_total: 1536,
    introducer_turned_away_total: 1,
    'introducer_introductions_total{outcome="linked",way="direct"}': 2,
    'introducer_introductions_total{outcome="peer-left",way="none"}': 1,
    'introducer_refusals_total{code="limit"}': 2,
    'introducer_link_seconds_bucket{le="0.05"}': 0,
    'introducer_link_seconds_bucket{le="0.1"}': 1,
    'introducer_link_seconds_bucket{le="0.2"}': 2,
    'introducer_link_seconds_bucket{le="+Inf"}': 2,
    introducer_link_seconds_sum: 0.26,
    introducer_link_seconds_count: 2,
    introducer_event_loop_delay_seconds_count: 2,
    introducer_connections_limit: 20_000,
    introducer_relays_limit: 256,
    introducer_relay_bytes_per_second_limit: 1e6,
    process_resident_memory_bytes: expect.any(Number),
    process_cpu_seconds_total: expect.any(Number),
  });
});

linuxTest("descriptors are counted, and how many there may be", async () => {
  const shown = (name: string) => parsePage(renderPrometheus(new Metrics().read(gauges), "0")).get(name)!;
  const grows = () => {
    const before = shown("process_open_fds");
    const files = Array.from({ length: 20 }, () => openSync("/dev/null", "r"));
    const after = shown("process_open_fds");
    for (const fd of files) closeSync(fd);
    return after - before;
  };
  // Bun's own threads may open and close some at that moment, for what ran before.
  await until("there are 20 more", () => grows() === 20);
  expect(shown("process_max_fds")).toBeGreaterThan(shown("process_open_fds"));
});

test("nobody's name or certificate is on the page", () => {
  expect(renderPrometheus(busy().read(gauges), "0")).not.toMatch(/alice|abab/);
});

test("an introducer to whom nothing has happened has a page, too", () => {
  const page = renderPrometheus(new Metrics().read(gauges), "0");
  expect(parsePage(page).get('introducer_link_seconds_bucket{le="+Inf"}')).toBe(0);
});

test.each([
  ["twice", (page: string) => page + page],
  ["without its end", (page: string) => page.trimEnd()],
  ["without a HELP", (page: string) => page.replace(/# HELP introducer_rooms .*\n/, "")],
  ["with a bucket that shrinks", (page: string) => page.replace(/(le="0.1"\}) 1/, "$1 9")],
  ["with a count that is not that of +Inf", (page: string) => page.replace(/(_count) \d+/, "$1 77")],
  ["with a bare quote in a label", (page: string) => page.replace('version="0', 'version="0"')],
])("a page %s is none", (_, spoil) => {
  const page = renderPrometheus(busy().read(gauges), "0");
  expect(parsePage(page).size).toBeGreaterThan(20);
  expect(spoil(page)).not.toBe(page);
  expect(() => parsePage(spoil(page))).toThrow();
});

test("whether the rooms are shared is shown where they are to be", () => {
  const shown = (isShared?: boolean) =>
    parsePage(
      renderPrometheus(new Metrics().read({ ...gauges, ...(isShared !== undefined && { isShared }) }), "0"),
    );
  expect([true, false, undefined].map((one) => shown(one).get("introducer_rooms_shared"))).toEqual([
    1,
    0,
    undefined,
  ]);
});

test("quantiles are bounds of a histogram", () => {
  const histogram = new Histogram([10, 20]);
  expect(quantile(histogram.read(), 0.5)).toBeUndefined();
  for (const ms of [1, 10, 11, 500]) histogram.add(ms);
  expect([0.5, 0.75, 0.99].map((part) => quantile(histogram.read(), part))).toEqual([10, 20, Infinity]);
});

/** A server with that page; what it told of itself. */
function serving(page: () => string, { port = 0, illness = () => undefined as string | undefined } = {}) {
  const [mistakes, warnings] = [[] as unknown[], [] as string[]];
  const server = new MetricsServer("127.0.0.1", port, {
    page,
    illness,
    mistake: (error) => mistakes.push(error),
    warn: (message) => warnings.push(message),
  });
  const at = `http://127.0.0.1:${server.port ?? port}`;
  return { server, mistakes, warnings, at, [Symbol.dispose]: () => server.stop() };
}

test("the server has one page, and says whether all is well; both are read only", async () => {
  let illness: string | undefined;
  const { server, at } = serving(() => "introducer_participants 0\n", { illness: () => illness });
  const asked = await Promise.all([
    fetch(`${at}/metrics`),
    fetch(`${at}/`),
    fetch(`${at}/metrics`, { method: "POST", body: "x" }),
    fetch(`${at}/healthz`, { method: "POST", body: "x" }),
    fetch(`${at}/healthz`),
  ]);
  expect(asked.map(({ status }) => status)).toEqual([200, 404, 405, 405, 200]);
  expect(asked[0]!.headers.get("content-type")).toContain("version=0.0.4");
  expect(await asked[0]!.text()).toBe("introducer_participants 0\n");
  expect(await asked[4]!.text()).toBe("ok\n");
  illness = "it ends";
  const ill = await fetch(`${at}/healthz`);
  expect([ill.status, await ill.text()]).toEqual([503, "it ends\n"]);
  server.stop();
  await expect(fetch(`${at}/metrics`)).rejects.toThrow();
});

test("a port that is taken is warned of, and had once it is free", async () => {
  const port = freePort();
  const other = Bun.listen({ hostname: "127.0.0.1", port, socket: { data() {} } });
  using serves = serving(() => "x 1\n", { port });
  expect(serves.server.port).toBeUndefined();
  const why = `no metrics on 127.0.0.1 port ${port}: a program listens there already`;
  expect(serves.warnings).toEqual([`${why}; trying again every second (or choose another with --metrics)`]);
  other.stop(true);
  await until("it listens", () => serves.server.port === port);
  expect(await (await fetch(`${serves.at}/metrics`)).text()).toBe("x 1\n");
  expect(serves.warnings).toHaveLength(1);
});

test("a reader gets the whole page, however long, and then the end, though it does not hang up", async () => {
  const page = "introducer_participants 0\n".repeat(200_000);
  using serves = serving(() => page);
  const socket = net.connect({ port: serves.server.port!, host: "127.0.0.1", allowHalfOpen: true });
  socket.write("GET /metrics HTTP/1.1\r\n");
  socket.write("host: introducer\r\n\r\n");
  let bytes = 0;
  for await (const chunk of socket) bytes += (chunk as Buffer).length;
  expect(bytes).toBeGreaterThan(page.length);
  socket.destroy();
});

test("a page that fails is told to the operator, and nothing of it to who asked", async () => {
  using serves = serving(() => {
    throw new Error("of our own");
  });
  const response = await fetch(`${serves.at}/metrics`);
  expect([response.status, await response.text()]).toEqual([500, "an error in the introducer\n"]);
  expect(serves.mistakes).toEqual([new Error("of our own")]);
});

// --- what watches it -------------------------------------------------------------------------------------

const ci = join(import.meta.dir, "..", "..", ".ci");
const rules = readFileSync(join(ci, "introducer.rules.yml"), "utf8");
const dashboard = readFileSync(join(ci, "introducer.dashboard.json"), "utf8");
const page = renderPrometheus(busy().read({ ...gauges, isShared: true }), "0");
const families = [...page.matchAll(/^# TYPE (\S+) (\S+)$/gm)].map(([, named = "", type]) => ({
  named,
  type,
}));
const samples = families.flatMap(({ named, type }) =>
  type === "histogram" ? ["_bucket", "_sum", "_count"].map((suffix) => named + suffix) : [named],
);
/** Of our names; in the dashboard, also of what is chosen by. */
const namesIn = (text: string) => new Set(text.match(/\b(?:introducer|process)_[a-z_]+/g));

test("alerts and the dashboard are about metrics that there are, and the dashboard shows all", () => {
  expect(namesIn(rules).size).toBeGreaterThan(10);
  for (const text of [rules, dashboard])
    expect([...namesIn(text)].filter((named) => !samples.includes(named))).toEqual([]);
  const shown = [...namesIn(dashboard)];
  const forgotten = families.filter(({ named }) => !shown.some((one) => one.startsWith(named)));
  expect(forgotten).toEqual([]);
  const labels = [...`${rules}${dashboard}`.matchAll(/\b(outcome|way|code)(?:!?[=~]+)\\?"([a-z-|]+)/g)];
  const known = {
    outcome: ["linked", "superseded", ...Object.keys(failureReasons)],
    way: ways,
    code: refusalCodes,
  };
  const isKnown = (label: string, value: string) =>
    (known[label as "way"] as readonly string[]).includes(value);
  const wrong = labels.filter(
    ([, label = "", values = ""]) => !values.split("|").every((one) => isKnown(label, one)),
  );
  expect([labels.length > 3, wrong]).toEqual([true, []]);
});

test("the dashboard is JSON with places that do not overlap, and each panel asks something", () => {
  const { panels } = JSON.parse(dashboard) as {
    panels: { title: string; gridPos: { x: number; y: number }; targets: { expr: string }[] }[];
  };
  const places = panels.map(({ gridPos: { x, y } }) => `${x},${y}`);
  expect(new Set(places).size).toBe(panels.length);
  expect(panels.filter(({ targets }) => targets.some(({ expr }) => expr === ""))).toEqual([]);
});

testNeeding(missing(["promtool"], "package prometheus"))(
  "promtool takes the alerts, and they fire when they should; and it takes the page",
  async () => {
    const promtool = async (args: string[], input = "") => {
      const command = ["promtool", ...args];
      const child = Bun.spawn(command, { cwd: ci, stdin: "pipe", stdout: "pipe", stderr: "pipe" });
      child.stdin.write(input);
      await child.stdin.end();
      const said = await Promise.all([child.stdout.text(), child.stderr.text()]);
      return [await child.exited, said.join("")];
    };
    const checked = await promtool(["check", "rules", "introducer.rules.yml"]);
    expect(checked).toEqual([0, expect.stringContaining("SUCCESS")]);
    expect(await promtool(["test", "rules", "introducer.rules.test.yml"])).toEqual([0, expect.any(String)]);
    expect(await promtool(["check", "metrics"], page)).toEqual([0, ""]);
  },
);
