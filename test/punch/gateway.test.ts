import { expect, test } from "bun:test";
import { findGateway, parseRouteAnswer, parseRouteTable } from "../../native/punch/gateway.ts";

const header = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT";
const table = (...lines: string[]) => [header, ...lines, ""].join("\n");
const viaRouter = "eth0\t00000000\t0101A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0";
const viaWifi = "wlan0\t00000000\t0102A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0";
const lan = "eth0\t0001A8C0\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0";

test.each([
  ["one default route", [viaRouter, lan], "192.168.1.1"],
  ["two: the lower metric", [viaWifi, lan, viaRouter], "192.168.1.1"],
  ["one that is down", [viaRouter.replace("0003", "0002"), viaWifi], "192.168.2.1"],
  [
    "a tunnel before the router: none",
    [viaRouter, "tun0\t00000000\t00000000\t0001\t0\t0\t50\t00000000\t0\t0\t0"],
    undefined,
  ],
  [
    "half of the Internet: none",
    [viaRouter.replace("\t00000000\t0\t0\t0", "\t00000080\t0\t0\t0")],
    undefined,
  ],
  ["no default route", [lan], undefined],
  ["what is no table", ["eth0", "", "a b c d e f g h i j"], undefined],
])("/proc/net/route: %s", (_, lines, gateway) => {
  expect(parseRouteTable(table(...lines))).toBe(gateway);
});

test.each([
  [
    "macOS",
    "   route to: default\ndestination: default\n    gateway: 192.168.1.1\n  interface: en0\n",
    "192.168.1.1",
  ],
  ["a tunnel", "   route to: default\n  interface: utun4\n", undefined],
  ["an interface instead", "    gateway: link#5\n", undefined],
  ["IPv6", "    gateway: fe80::1\n", undefined],
  ["nothing", "", undefined],
])("route -n get default: %s", (_, answer, gateway) => {
  expect(parseRouteAnswer(answer)).toBe(gateway);
});

test("this host's gateway has an address of ours on the way, or there is none", async () => {
  const gateway = await findGateway(new AbortController().signal);
  if (gateway) expect(gateway).toMatchObject({ mappingPort: 5351, announcementPort: 5350, searchPort: 1900 });
  if (gateway) expect(gateway.localAddress).toMatch(/^\d+\.\d+\.\d+\.\d+$/);
});
