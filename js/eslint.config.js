import tseslint from "typescript-eslint";

// Everything that an agent can name is text: the doors through which text becomes markup are shut for the whole tree.
const markup = ["innerHTML", "outerHTML", "insertAdjacentHTML", "write", "writeln", "srcdoc"].map((property) => ({
  property,
  message: "Agents choose names: use textContent.",
}));

export default tseslint.config(
  { ignores: ["node_modules", "build.mjs", "eslint.config.js", "vitest.config.ts"] },
  ...tseslint.configs.strictTypeChecked,
  {
    languageOptions: { parserOptions: { projectService: true, tsconfigRootDir: import.meta.dirname } },
    rules: {
      "no-restricted-properties": ["error", ...markup],
      "no-eval": "error",
      "no-console": "error",
      eqeqeq: "error",
      "max-lines": ["error", 450],
      "max-lines-per-function": ["error", 60],
      "@typescript-eslint/restrict-template-expressions": ["error", { allowNumber: true }],
      "@typescript-eslint/explicit-module-boundary-types": "error",
    },
  },
  { files: ["tests/**"], rules: { "max-lines-per-function": "off", "@typescript-eslint/no-non-null-assertion": "off" } },
);
