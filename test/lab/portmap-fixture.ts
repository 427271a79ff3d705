/**
 * A host that wants one of its ports to be reached: listens on it, tells whoever connects what it sees of them, and
 * has the router open it. A line of JSON for every state; any line on stdin closes the mapping, and only that.
 *
 *   PORT OBSERVED LIFETIME_S
 */
import { PortMapping, type PortMappingState } from "../../native/punch/portmap.ts";
import { parseEndpoint } from "../../protocol.ts";

export type PortMappingEvent =
  { event: "state"; state: PortMappingState } | { event: "deleted"; tookMs: number };

if (import.meta.main) {
  const [port, observed, lifetimeS] = process.argv.slice(2);
  const report = (event: PortMappingEvent) => console.log(JSON.stringify(event));
  Bun.listen({
    hostname: "0.0.0.0",
    port: Number(port),
    socket: { open: (socket) => void socket.write(`${socket.remoteAddress}\n`), data() {} },
  });
  const mapping = new PortMapping({
    internalPort: Number(port),
    observed: parseEndpoint(observed!)!,
    lifetimeS: Number(lifetimeS),
    onChange: (state) => report({ event: "state", state }),
  });
  for await (const _ of console) {
    const startedAt = performance.now();
    await mapping.close();
    report({ event: "deleted", tookMs: performance.now() - startedAt });
  }
}
