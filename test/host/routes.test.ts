/** The default routes, as Linux shows them. */
import { expect, setDefaultTimeout, test } from "bun:test";
import { defaultGateways, parseIPv6Routes, parseRouteTable } from "../../native/host/routes.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

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

const zero = "0".repeat(32);
const route = (destination: string, length: string, gateway: string) =>
  `${destination} ${length} ${zero} 00 ${gateway} 00000400 00000001 00000000 00000003     eth0`;
test.each([
  ["a router", [route(zero, "00", "fe800000000000000000000000000001")], ["fe80::1"]],
  ["no router: the link itself", [route(zero, "00", zero)], []],
  ["a network", [route("fd000000000000000000000000000000", "40", "fe800000000000000000000000000001")], []],
  ["what is no table", ["", "a b", "x"], []],
])("/proc/net/ipv6_route: %s", (_, lines, gateways) => {
  expect(parseIPv6Routes(lines.join("\n"))).toEqual(gateways);
});

test("what this host shows can be read", () => {
  expect(defaultGateways().every((one) => /^[0-9a-f.:]+$/.test(one))).toBe(true);
});
