/**
 * A punch with ourselves: the first punch of a program is slow, and nobody waits for this one. Owns its sockets. For
 * native/participant/situation.ts.
 */
import { formatEndpoint } from "../../protocol.ts";
import { SystemError } from "../host/libc.ts";
import { Channel } from "../secure/channel.ts";
import { type Credentials } from "../secure/tls.ts";
import type { Member } from "../secure/room.ts";
import { Socket } from "../host/socket.ts";
import { PunchPort } from "./punch-port.ts";

/** How long {@link rehearse} may take. */
const rehearsalMs = 500;
/** No secret: it is our own punch. */
export const rehearsalKey = new Uint8Array(32);

/**
 * One punch with ourselves over loopback. The first punch of a program loads TLS, and runs code that is not compiled
 * yet. For some 30 ms the peer's SYNs would meet nobody. `use` gets the controlling side's channel, which is closed soon.
 * Resolves also if it fails.
 */
export async function rehearse(
  credentials: Credentials,
  self: Member,
  use: (channel: Channel) => void = () => {},
): Promise<void> {
  const sockets: Socket[] = [];
  try {
    const ports = [0, 1].map(() => {
      const socket = Socket.open(4);
      sockets.push(socket);
      const port = socket.bind(0);
      socket.shareport();
      return port;
    });
    const channels = ports.map((port, index) => {
      const { promise, resolve } = Promise.withResolvers<Channel | undefined>();
      new PunchPort(port, credentials).punch({
        introduction: { role: index === 0 ? "controlling" : "controlled", token: "0".repeat(32) },
        bond: { key: rehearsalKey, self, peer: self },
        candidates: [{ endpoint: formatEndpoint("127.0.0.1", ports[1 - index]!), route: "private" }],
        startInMs: 0,
        deadlineMs: rehearsalMs,
        isReachable: true,
        onLinked: (channel) => {
          if (index === 0) use(channel);
          resolve(channel);
        },
        onFailed: () => resolve(undefined),
      });
      return promise;
    });
    for (const channel of await Promise.all(channels)) channel?.destroy();
  } catch (error) {
    if (!(error instanceof SystemError)) throw error; // no loopback, or no descriptors
  } finally {
    for (const socket of sockets) socket.close();
  }
}
