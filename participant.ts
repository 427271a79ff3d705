#!/usr/bin/env -S bun --no-env-file --config=/dev/null --tsconfig-override=/dev/null
/**
 * The participant: registers with an introducer, learns who is in the room, and punches direct TCP connections to the
 * others. Here is where the program starts, and what other programs import: the class is in
 * native/participant/participant.ts, and the rest of the program in native/terminal/. Never imports the introducer.
 *
 * The nine steps, and where they are:
 *
 *   1. connect to the introducer, say our private endpoints   registration.ts #introduceOurselves, host/control.ts
 *   2. it says the public endpoint that it sees               registration.ts #begin, situation.ts
 *   3. it says who is in the room                             roster.ts, by hearing.ts
 *   4. ask to be introduced to B                              peer.ts connect, punch/encounter.ts ask
 *   5. it tells both to punch                                 hearing.ts, punch/encounter.ts punch
 *   6. both start                                             punch/encounter.ts #start
 *   7. listen, and connect to all endpoints, from one port    punch/punch-port.ts
 *   8. the first that succeeds ends the others; retry         punch/punch.ts, punch/dial.ts
 *   9. both report it                                         linking.ts #linked, #unlinked, failed
 *
 * RFC 5128 §3.4 (TCP hole punching), RFC 8445 (candidates, roles, nomination).
 */
import type * as library from "./native/participant/participant.ts";
import { beginRoom } from "./native/secure/room.ts";
import { likelyWords } from "./native/terminal/likely-words.ts";

export type { Link } from "./native/session/link.ts";
export type { Stream } from "./native/session/stream.ts";
export type { From } from "./native/uses/from.ts";
export { UserError } from "./protocol.ts";

// What takes long begins first: the key of the room, in another thread, and then the way to the introducer.
if (import.meta.main) {
  const args = process.argv.slice(2);
  beginRoom(likelyWords(args, process.env));
  const [{ beginConnecting }, { likelyIntroducer }] = await Promise.all([
    import("./native/host/connecting.ts"),
    import("./native/terminal/participant-options.ts"),
  ]);
  beginConnecting(likelyIntroducer(args, process.env));
}

const program = import.meta.main ? import("./native/terminal/participant-main.ts") : undefined;
export const { Participant } = await import("./native/participant/participant.ts");
export type Participant = library.Participant;

await (await program)?.run();
