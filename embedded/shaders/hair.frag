// Kajiya and Kay 1989 along the strand, with the two shifted highlights of Marschner 2003 as Scheuermann 2004 paints them.
in vec3 v_position;
in vec3 v_tangent;
in vec3 v_outward;
in vec3 v_info;
out vec4 color;
uniform vec3 albedo;
uniform vec2 hair;   // gloss, root darkness
void main() {
    vec3 t = normalize(v_tangent), view = normalize(camera.xyz - v_position), n = normalize(v_outward);
    float open = v_info.y, s = lit_quick(v_position + n * 0.06);
    vec3 base = albedo * (0.72 + 0.55 * v_info.z) * mix(hair.y, 1.0, smoothstep(0.0, 0.45, v_info.x));
    base *= mix(0.35, 1.05, open);
    float tl = dot(t, key_dir.xyz), sin_tl = sqrt(max(1.0 - tl * tl, 0.0));
    float facing = clamp(0.55 + 0.6 * dot(n, key_dir.xyz), 0.0, 1.0);
    vec3 light = key_color.rgb * (0.25 + 0.75 * sin_tl) * facing * mix(0.25, 1.0, s) * 0.75 + ambient(n) * mix(0.45, 1.0, open);
    light += rim_color.rgb * 0.5 * max(dot(n, rim_dir.xyz), 0.0);
    vec3 h = normalize(view + key_dir.xyz);
    float shift = 0.25 * (v_info.z - 0.5);
    float th1 = dot(normalize(t + (shift - 0.10) * n), h), th2 = dot(normalize(t + (shift + 0.18) * n), h);
    float lobe1 = pow(max(1.0 - th1 * th1, 0.0), 60.0), lobe2 = pow(max(1.0 - th2 * th2, 0.0), 18.0);
    vec3 shine = key_color.rgb * s * facing * (0.10 * lobe1 * vec3(1.0) + 0.28 * lobe2 * (base + 0.04)) * hair.x * open;
    shine += rim_color.rgb * 0.10 * pow(max(1.0 - pow(dot(t, normalize(view + rim_dir.xyz)), 2.0), 0.0), 20.0) * hair.x * max(dot(n, rim_dir.xyz) + 0.3, 0.0);
    color = vec4(to_screen(base * light + shine), 1.0);
}
