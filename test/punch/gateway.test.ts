import { expect, setDefaultTimeout, test } from "bun:test";
import { findGateway, parseRouteAnswer } from "../../native/punch/gateway.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

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
