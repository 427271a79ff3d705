/**
 * A transfer in one program, to be killed, or to be run where the disk is small. Arguments: SOURCE TARGET. Writes the
 * bytes done while it goes on, one number a line, and at the end the outcome of both sides as JSON.
 */
import { TransferProgress } from "../../native/uses/files.ts";
import { receiveFiles } from "../../native/uses/receive.ts";
import { collectFiles } from "../../native/uses/source-files.ts";
import { sendFiles } from "../../native/uses/send.ts";
import { Linked } from "../session/linked-fixture.ts";

const [source, directory] = process.argv.slice(2) as [string, string];
using link = new Linked();
const wordsOf = (error: Error) => error.message;
const received = new Promise((resolve) => {
  link.onStream = (stream, purpose) =>
    resolve(
      receiveFiles(stream, purpose, { peer: "a1".repeat(32), decide: () => ({ directory }) }).catch(wordsOf),
    );
});
const collection = await collectFiles([source]);
const progress = new TransferProgress({ files: collection.files.length, bytes: collection.bytes });
const ticking = setInterval(() => console.log(progress.bytesDone), 1);
const sent = await sendFiles(link.alice, collection, { progress }).catch(wordsOf);
clearInterval(ticking);
console.log(JSON.stringify({ sent, received: await received, moved: progress.bytesMoved }));
