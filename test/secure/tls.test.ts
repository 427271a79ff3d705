import { expect, setDefaultTimeout, test } from "bun:test";
import { once } from "node:events";
import { adopt, SecureSocket } from "../../native/secure/tls.ts";
import { connectShared } from "../../native/host/socket.ts";
import { listening, noSocketLeft } from "../native-fixture.ts";
import {
  accepted,
  aliceIdentity,
  bobIdentity,
  client,
  credentialsOf,
  server,
} from "../session/story-fixture.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

const owner = { refused: () => {}, failed: () => {} };

async function secured(): Promise<SecureSocket[]> {
  using listener = listening();
  const { socket } = await connectShared(listener.endpoint, testMs);
  const alice = new SecureSocket(adopt(socket), client, credentialsOf(aliceIdentity), owner);
  const accept = adopt(await accepted(listener.socket));
  const bob = new SecureSocket(accept, server, credentialsOf(bobIdentity), owner);
  await Promise.all([alice.secured, bob.secured]);
  return [alice, bob];
}

// Bun would copy each read for it.
test("what comes by TLS is not handed to the socket below, too", async () => {
  await using _ = noSocketLeft();
  const [alice, bob] = await secured();
  for (const [from, to] of [
    [alice!, bob!],
    [bob!, alice!],
  ] as const) {
    const before = to.connection.raw.bytesRead;
    from.stream.write(Buffer.alloc(100_000));
    for (let left = 100_000; left > 0;) left -= (await once(to.stream, "data"))[0].length;
    expect(to.connection.raw.bytesRead).toBe(before);
  }
  alice!.destroy();
  bob!.destroy();
});
