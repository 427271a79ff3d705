/** What speaks UDP by a forward, through two NATs: WireGuard, a whole network of its own. */
import { expect } from "bun:test";
import { missing, unlessRequired } from "../../needing-fixture.ts";
import { freeUdpPort } from "../../udp-fixture.ts";
import { newKeys, noWireGuard, WireGuard } from "../wireguard.ts";
import { longLabScenario } from "./field-fixture.ts";
import { Village } from "./village-fixture.ts";

const wireGuard = longLabScenario(
  noWireGuard,
  unlessRequired(missing(["iperf3", "ping"], "packages iperf3, iputils-ping")),
);
const longMs = 90_000;

wireGuard(
  "WireGuard in user space by a forward of UDP: ping, and iperf3 both ways",
  async () => {
    await using village = await Village.create();
    const { alice, bob } = village.hosts;
    const [port, own] = [freeUdpPort(), freeUdpPort()];
    await village.link([`${port}/udp`]);
    const keys = { alice: newKeys(), bob: newKeys() };
    const [here, there] = ["10.99.0.1", "10.99.0.2"];
    await using _bob = await WireGuard.start(bob, {
      ...{ name: "wg-bob", keys: keys.bob, address: there, port },
      peer: { key: keys.alice.public, address: here },
    });
    await using _alice = await WireGuard.start(alice, {
      ...{ name: "wg-alice", keys: keys.alice, address: here, port: own },
      peer: { key: keys.bob.public, address: there, port },
    });
    const pinged = await alice.run(["ping", "-c", "10", "-i", "0.2", "-W", "5", there]);
    expect(pinged).toContain(" 0% packet loss");
    const speed = async (...options: string[]) => {
      const server = bob.spawn(["iperf3", "-s", "-1", "-B", there, "--forceflush"], {
        ...({ stdin: "ignore", stdout: "pipe", stderr: "ignore" } as const),
      });
      await server.stdout.getReader().read(); // it listens
      const report = await alice.run(["iperf3", "-c", there, "-t", "3", "-J", ...options]);
      await server.exited;
      const { end } = JSON.parse(report) as { end: { sum_received: { bits_per_second: number } } };
      return end.sum_received.bits_per_second / 1e6;
    };
    const [up, down] = [await speed(), await speed("-R")];
    expect(Math.min(up, down)).toBeGreaterThan(0);
    const rtt = /= [\d.]+\/([\d.]+)\//.exec(pinged)?.[1];
    return `10 pings in ${rtt} ms on average; iperf3 ${up.toFixed(0)} and ${down.toFixed(0)} Mbit/s`;
  },
  longMs,
);
