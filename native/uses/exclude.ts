/**
 * What is left out of what is sent (--exclude). Pure. For native/uses/source-files.ts and native/terminal/.
 *
 *   NAME     what is called so, at any depth: `*.tmp`, `node_modules`
 *   A/B      that path, from the first folder that is named on: `photos/raw`, `photos/**\/*.mov`
 *   …/       only a folder
 *
 * `*` is anything but a slash, `**` anything, `?` one character, `[ab]` one of them, `{a,b}` one of these. What is in a folder
 * that is left out is left out, too.
 */

/** What is wrong with a pattern; undefined if nothing is. */
export function patternProblem(pattern: string): string | undefined {
  if (/^\/*$/.test(pattern)) return "needs a pattern such as '*.tmp', node_modules or photos/raw";
  return pattern.startsWith("!") ? "takes nothing back in: a pattern can't begin with !" : undefined;
}

interface Pattern {
  readonly glob: Bun.Glob;
  readonly isPath: boolean;
  readonly isFolder: boolean;
}

function patternOf(text: string): Pattern {
  const bare = text.replace(/^\.?\/+|\/+$/g, "");
  return { glob: new Bun.Glob(bare), isPath: bare.includes("/"), isFolder: text.endsWith("/") };
}

export class Exclusion {
  readonly #patterns: readonly Pattern[];

  constructor(patterns: readonly string[] = []) {
    this.#patterns = patterns.map(patternOf);
  }

  /** Whether that is left out itself. `path`: with slashes, from the name of what the user has named on. */
  has(path: string, isFolder: boolean): boolean {
    const name = path.slice(path.lastIndexOf("/") + 1);
    return this.#patterns.some(
      (one) => (isFolder || !one.isFolder) && one.glob.match(one.isPath ? path : name),
    );
  }

  /** Whether that file, or a folder that it is in, is left out. */
  covers(path: string): boolean {
    const parts = path.split("/");
    return parts.some((_, index) => this.has(parts.slice(0, index + 1).join("/"), index + 1 < parts.length));
  }
}
