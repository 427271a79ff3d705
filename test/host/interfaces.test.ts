/** The addresses of this host, and what is on its links. */
import { expect, setDefaultTimeout, test } from "bun:test";
import { join } from "node:path";
import { hostAddresses, isOnLink, type HostAddress } from "../../native/host/interfaces.ts";
import { addressScope } from "../../protocol.ts";
import { linuxTest } from "../needing-fixture.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

test("there is loopback, and nothing that a peer could not use", () => {
  const all = hostAddresses();
  expect(all).toContainEqual({ address: "127.0.0.1", prefixBits: 8, device: expect.stringMatching(/^lo/) });
  expect(all.filter(({ address }) => addressScope(address) === "unusable")).toEqual([]);
});

test.each<[address: string, own: HostAddress, expected: boolean]>([
  ["192.168.1.7", { address: "192.168.1.4", prefixBits: 24 }, true],
  ["192.168.2.7", { address: "192.168.1.4", prefixBits: 24 }, false],
  ["192.168.2.7", { address: "192.168.1.4", prefixBits: 22 }, true],
  ["192.168.4.7", { address: "192.168.1.4", prefixBits: 22 }, false],
  ["10.200.0.1", { address: "10.0.0.1", prefixBits: 8 }, true],
  ["10.0.0.2", { address: "10.0.0.1", prefixBits: 32 }, false],
  ["10.0.0.2", { address: "10.0.0.3", prefixBits: 31 }, true],
  ["fd00::1:2", { address: "fd00::2", prefixBits: 64 }, true],
  ["fd00:0:0:1::2", { address: "fd00::2", prefixBits: 64 }, false],
  ["fd00::2", { address: "192.168.1.4", prefixBits: 0 }, false],
])("%s seen from %o: %p", (address, own, expected) => {
  expect(isOnLink(address, [own])).toBe(expected);
});

linuxTest("without descriptors the last known ones are told", async () => {
  const fixture = join(import.meta.dir, "interfaces-fixture.ts");
  const child = Bun.spawn(["sh", "-c", 'ulimit -n 64; exec "$0" "$1"', process.execPath, fixture], {
    stdout: "pipe",
    stderr: "inherit",
  });
  expect(await new Response(child.stdout).text()).toBe("EMFILE\ntrue\n");
  expect(await child.exited).toBe(0);
});
