/**
 * A peer to be killed: connects to the endpoint given as argument, is the controlling side of a link, says
 * hello and answers whatever it is asked. The identity comes as JSON on stdin.
 */
import type { Identity } from "../../native/secure/identity.ts";
import { Channel } from "../../native/secure/channel.ts";
import { adopt, Credentials } from "../../native/secure/tls.ts";
import { connectShared } from "../../native/host/socket.ts";
import { parseEndpoint } from "../../protocol.ts";
import { beginLink, client, securedAs, token } from "./story-fixture.ts";

const identity: Identity = await Bun.stdin.json();
const { socket } = await connectShared(parseEndpoint(process.argv[2]!)!, 5_000);
const channel = new Channel(adopt(socket), "public", client, new Credentials(identity));
await securedAs(channel, identity);
channel.nominate(token);
const { link, lines } = beginLink(channel);
void link.ended.then((reason) => console.log(reason));
await lines.say("hello");
console.log("heard");
