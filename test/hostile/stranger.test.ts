/**
 * Strangers to whom the introducer's port is open, with as many addresses, connections and names as they like, by hand
 * and against the real program: what they must not take from everyone else.
 */
import { expect } from "bun:test";
import { join } from "node:path";
import { missing, testNeeding } from "../needing-fixture.ts";

// --- whole IPv6 sites, in a namespace of their own ---------------------------------------------------------

const namespace = ["unshare", "-Urn", "sh", "-ec"];
const sites = `
ip link set lo up
ip -6 route add local 2001:db8::/32 dev lo
echo 1 > /proc/sys/net/ipv6/ip_nonlocal_bind
ip addr add 169.254.7.7/16 dev lo
ip addr add fe80::7/64 dev lo nodad
exec "$@"`;

function siteObstacle(): string | undefined {
  const absent = missing(["unshare", "ip"], "packages util-linux, iproute2");
  if (absent !== undefined) return absent;
  const { success, stderr } = Bun.spawnSync([...namespace, sites, "sh", "true"]);
  return success ? undefined : `no network namespace: ${stderr.toString().trim()}`;
}
const siteTest = testNeeding(siteObstacle());

async function attack(name: string): Promise<Record<string, unknown>> {
  const fixture = join(import.meta.dir, "sites-fixture.ts");
  const command = [...namespace, sites, "sh", process.execPath, fixture, name];
  await using child = Bun.spawn(command, {
    stdin: "ignore",
    stdout: "pipe",
    stderr: "inherit",
    timeout: 60_000,
  });
  return JSON.parse(await child.stdout.text());
}

siteTest(
  "a site with 65,536 addresses does not fill the lobby",
  async () => {
    const { places, refusal, other } = await attack("lobby");
    expect(places).toBeLessThanOrEqual(128);
    expect(refusal).toContain("(4 times that of an IPv6 /48) in a room are enough");
    expect(other).toBe("registered");
  },
  60_000,
);

siteTest(
  "a site with 65,536 addresses has nobody punch more than all others together may",
  async () => {
    const { punches, other } = await attack("target");
    expect(punches).toBeLessThan(80); // 60 a minute, and what comes back meanwhile
    expect(other).toBe("punch");
  },
  60_000,
);

siteTest(
  "a site that has all its connections is not answered from ever new addresses",
  async () => {
    expect(await attack("refusals")).toEqual({ turnedAway: true });
  },
  60_000,
);

siteTest("who comes by a link-local address is told why it is closed, and counted", async () => {
  const closed = (address: string) => ({
    code: "bad-field",
    message: `you come by ${address}, a link-local address that peers can't use: take another way to the introducer`,
    end: "it ended the connection",
  });
  expect(await attack("linkLocal")).toEqual({
    told: [closed("169.254.7.7"), closed("fe80::7")],
    refusals: [{ code: "bad-field", count: 2 }],
    refused: 2,
  });
});
