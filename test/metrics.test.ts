import { expect, test } from "bun:test";
import { Histogram, Metrics, MetricsServer, quantile, renderPrometheus } from "../native/metrics.ts";

const gauges = { participants: 3, rooms: 2, connections: 5, waiting: 1, relays: 1, relayedBytes: 1536 };

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

/** The page as Prometheus takes it: name and labels to value, or an error in words. */
function parsePage(page: string): Map<string, number> {
  const values = new Map<string, number>();
  const types = new Map<string, string>();
  for (const line of page.trimEnd().split("\n")) {
    const [, typed, type] = /^# TYPE ([a-z_]+) (gauge|counter|histogram)$/.exec(line) ?? [];
    if (typed && type) {
      if (types.has(typed)) throw new Error(`two families ${typed}`);
      types.set(typed, type);
      continue;
    }
    if (/^# HELP [a-z_]+ \S/.test(line)) continue;
    const match = /^([a-z_]+)(\{(?:[a-z]+="[^"\\]*",?)+\})? (\S+)$/.exec(line);
    if (!match) throw new Error(`not a sample: ${line}`);
    const [, name = "", labels = "", value] = match;
    const family = name.replace(/_(bucket|sum|count)$/, "");
    if (!types.has(name) && types.get(family) !== "histogram") throw new Error(`no type of ${name}`);
    if (types.get(name) === "counter" && !name.endsWith("_total"))
      throw new Error(`a counter called ${name}`);
    if (values.has(name + labels) || Number.isNaN(Number(value)))
      throw new Error(`again, or no number: ${line}`);
    values.set(name + labels, Number(value));
  }
  return values;
}

test("the page is one that Prometheus reads, in seconds and bytes", () => {
  const values = parsePage(renderPrometheus(busy().read(gauges), "1.2.3"));
  expect(Object.fromEntries(values)).toMatchObject({
    'introducer_build_info{version="1.2.3"}': 1,
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
    process_resident_memory_bytes: expect.any(Number),
  });
});

test("an introducer to whom nothing has happened has a page, too", () => {
  const page = renderPrometheus(new Metrics().read(gauges), "0");
  expect(parsePage(page).get('introducer_link_seconds_bucket{le="+Inf"}')).toBe(0);
});

test("quantiles are bounds of a histogram", () => {
  const histogram = new Histogram([10, 20]);
  expect(quantile(histogram.read(), 0.5)).toBeUndefined();
  for (const ms of [1, 10, 11, 500]) histogram.add(ms);
  expect([0.5, 0.75, 0.99].map((part) => quantile(histogram.read(), part))).toEqual([10, 20, Infinity]);
});

test("the server has one page, which is read only", async () => {
  const server = new MetricsServer("127.0.0.1", 0, () => "introducer_participants 0\n");
  const at = `http://127.0.0.1:${server.port}`;
  const asked = await Promise.all([
    fetch(`${at}/metrics`),
    fetch(`${at}/`),
    fetch(`${at}/metrics`, { method: "POST", body: "x" }),
  ]);
  expect(asked.map(({ status }) => status)).toEqual([200, 404, 405]);
  expect(asked[0].headers.get("content-type")).toContain("version=0.0.4");
  expect(await asked[0].text()).toBe("introducer_participants 0\n");
  await server.stop();
  expect(fetch(`${at}/metrics`)).rejects.toThrow();
});
