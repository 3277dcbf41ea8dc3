{
  description = "A dozen derivations to watch being built; they need no network and no inputs";

  outputs = { self }:
    let
      system = "@system@";

      # A derivation of a shell script. In the sandbox /bin/sh is a busybox, which brings its tools along.
      script = attributes: text: derivation ({
        inherit system;
        builder = "/bin/sh";
        args = [ "-euc" text ];
        PATH = "/bin:/usr/bin";
      } // attributes);

      # Needed by others, but no attribute of its own.
      soil = script { name = "soil"; } ''
        echo "digging"
        sleep 0.5
        echo "good soil" > $out
      '';

      flower = color: script { name = color; inherit soil; } ''
        echo "a $name flower grows"
        sleep 1
        { echo "$name on"; cat $soil; } > $out
      '';
    in
    {
      checks.${system} = rec {
        # A chain: each link needs the one before, and the last keeps a reference to it.
        verse = script { name = "verse"; } ''
          echo "writing a verse"
          echo "what was built once is built for all" > $out
        '';
        poem = script { name = "poem"; inherit verse; } ''
          for line in 1 2 3; do echo "line $line"; sleep 0.3; cat $verse >> $out; done
        '';
        book = script { name = "book"; inherit poem; } ''
          mkdir $out
          cp $poem $out/text
          echo "the poem came from $poem" > $out/imprint
        '';

        # A fan: three flowers from the same soil, and a bouquet of all of them.
        red = flower "red";
        green = flower "green";
        blue = flower "blue";
        bouquet = script { name = "bouquet"; inherit red green blue; } ''
          cat $red $green $blue | sort > $out
        '';

        # One build, three outputs that can be fetched one by one.
        split = script { name = "split"; outputs = [ "out" "doc" "dev" ]; } ''
          mkdir $out $doc $dev
          echo "program" > $out/program
          echo "how to use the program" > $doc/manual
          echo "part of $out" > $dev/header
        '';

        # Known by its content: whatever builds it, its path is the same.
        fixed = script
          {
            name = "fixed";
            outputHashMode = "flat";
            outputHashAlgo = "sha256";
            outputHash = "e3c189c72d3e1549ca51dd941827d1c7c715cc9f21c4499d2af93796925b1c14";
          } ''
          echo "the same bytes, wherever they come from" > $out
        '';

        # From a file of this repository: change it, commit, and only this is built again.
        page = script { name = "page"; src = ./src; } ''
          mkdir $out
          { echo "<pre>"; cat $src/page.txt; echo "</pre>"; } > $out/index.html
          sha256sum $out/index.html
        '';

        # What going wrong looks like: a build that fails, and one that needs it.
        broken = script { name = "broken"; } ''
          echo "checking the weather"
          sleep 1
          echo "about to fail, on purpose"
          exit 1
        '';
        needs-broken = script { name = "needs-broken"; inherit broken; } ''
          cp $broken $out
        '';

        # And an attribute that never becomes a derivation.
        impossible = throw "this attribute cannot be evaluated, on purpose";
      };
    };
}
